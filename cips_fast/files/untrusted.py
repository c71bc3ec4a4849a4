"""Files that anyone may have written: opened with errors of one line, and told apart by their content."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..checks import ArgumentError, argument_os_error

SAFETENSORS, ZIP, PICKLE, OTHER = "safetensors", "zip", "pickle", "other"  # what `kind_of` gives
PROTOCOLS = b"\x02\x03\x04\x05"  # of pickle, the second byte of such a file


class CheckpointError(ArgumentError):
    """A file that cannot be used as a checkpoint.

    Attributes:
        fault: what is wrong with the file, as the rest of a sentence that begins with the file's name.
    """

    def __init__(self, path: str | Path, fault: str):
        super().__init__("checkpoint", f"{str(path)!r} {fault}")
        self.args = path, fault  # from which pickle makes the error again
        self.fault = fault


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; nothing else, since opening a pipe may wait for ever.

    Raises:
        FileNotFoundError: no file is there.
        OSError: the file cannot be read, such as PermissionError.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileNotFoundError
        return open(path, "rb")
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file can have
        reason = f"got {str(path)!r}, which is not a file"
        raise argument_os_error(FileNotFoundError, "checkpoint", reason) from None
    except OSError as error:
        reason = f"{str(path)!r} cannot be read ({error.strerror})"
        refused = argument_os_error(type(error), "checkpoint", reason)
        refused.strerror = error.strerror  # for callers that say the rest in their own words
        raise refused from None


def kind_of(path: str | Path) -> str:
    """What a file is by its first bytes, whatever its name: `SAFETENSORS`, `ZIP`, `PICKLE` or `OTHER`.

    `torch.save` writes the second, and wrote the third before PyTorch 1.6.

    Raises:
        FileNotFoundError, OSError: as `open_file`.
    """
    with open_file(path) as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        return ZIP
    # The header's length in eight bytes, which are never text, and then the header, which is JSON.
    if start[8:] == b"{" and (b"\0" in start or not start.isascii()):
        return SAFETENSORS
    return PICKLE if start[:1] == b"\x80" and start[1:2] in PROTOCOLS else OTHER


def not_a_checkpoint(path: str | Path) -> CheckpointError:
    """The error for a file of kind `OTHER`."""
    if os.stat(path).st_size == 0:
        return CheckpointError(path, "is empty")
    return CheckpointError(path, "is not a checkpoint: it is neither a safetensors file nor one that torch.save wrote")


def first_line(error: BaseException | str, most: int = 120) -> str:
    """The first line of an error's text, or its class where it has none, of bounded length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = "".join(character if character.isprintable() else "?" for character in lines[0][: most + 1])
    return line if len(line) <= most else line[:most] + "…"

"""Opening files of unknown origin with errors of one line, and telling checkpoints apart by their first bytes."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..checks import ArgumentError, argument_os_error

SAFETENSORS, ZIP, PICKLE, OTHER = "safetensors", "zip", "pickle", "other"  # what `kind_of` returns
PROTOCOLS = b"\x02\x03\x04\x05"  # the second byte of a pickle file is one of these


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
    """Open a regular file for reading. Other files are refused, since opening a pipe may wait forever.

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
        refused.strerror = error.strerror  # for callers that write their own message
        raise refused from None


def kind_of(path: str | Path) -> str:
    """What a file is by its first bytes, whatever its name: `SAFETENSORS`, `ZIP`, `PICKLE` or `OTHER`.

    `torch.save` writes a ZIP file; before PyTorch 1.6, it wrote a PICKLE file.

    Raises:
        FileNotFoundError, OSError: as `open_file`.
    """
    with open_file(path) as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        return ZIP
    # A safetensors file begins with the header's length in eight bytes, which are never text; the header is JSON.
    if start[8:] == b"{" and (b"\0" in start or not start.isascii()):
        return SAFETENSORS
    return PICKLE if start[:1] == b"\x80" and start[1:2] in PROTOCOLS else OTHER


def not_a_checkpoint(path: str | Path) -> CheckpointError:
    """The error for a file of kind `OTHER`."""
    if os.stat(path).st_size == 0:
        return CheckpointError(path, "is empty")
    return CheckpointError(path, "is not a checkpoint: it is neither a safetensors file nor one that torch.save wrote")


def first_line(error: BaseException | str, most: int = 120) -> str:
    """The first line of an error's text, cut to a bounded length; the name of its class if it has no text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = "".join(character if character.isprintable() else "?" for character in lines[0][: most + 1])
    return line if len(line) <= most else line[:most] + "…"

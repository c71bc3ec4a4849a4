"""Writing a file so that it is there whole or not at all: into a temporary file first, which is then moved."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = re.compile(r"\.[0-9]+-[0-9a-f]+\.partial")  # names that `temporary_path` gives: process id, random digits


def temporary_path(path: str | Path) -> Path:
    """A path in the same folder that no other call gives, so that two writers of one file never mix."""
    return Path(path).with_name(f".{os.getpid()}-{secrets.token_hex(4)}.partial")


def move_into_place(temporary: Path, path: str | Path) -> None:
    """Sync a finished file to disk and let it replace `path`, which is in the same file system.

    Raises:
        OSError: the file cannot be synced or moved; then `path` is as it was.
    """
    with open(temporary, "r+b") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(Path(path).parent)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; the file written there replaces `path` when the block ends.

    The file gets the mode that the umask gives to new files, whatever mode the writer in the block chose, and is synced
    to disk before it is moved. If the block raises, the temporary file is removed and `path` stays as it was.

    Raises:
        OSError: the file cannot be created, synced or moved.
    """
    temporary = temporary_path(path)
    with open(temporary, "xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        yield temporary
        os.chmod(temporary, mode)
        move_into_place(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, content: bytes) -> None:
    """Replace a file's content; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, so that a moved file survives a loss of power, where the system can do that."""
    with contextlib.suppress(OSError):  # Windows opens no folder, and some network file systems sync none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

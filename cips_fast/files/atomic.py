"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

PARTIAL = ".partial"


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; the file written there replaces `path` when the block ends.

    The temporary name belongs to this call alone, so two writers of one path never mix. The file gets the mode that the
    umask gives to new files, whatever mode the writer in the block chose, and is synced to disk before it is moved. If
    the block raises, the temporary file is removed and `path` stays as it was.

    Raises:
        OSError: the file cannot be created, synced or moved.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    with open(temporary, "xb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(path: str | Path, content: bytes) -> None:
    """Replace a file's content; see `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, so that a moved file survives a loss of power; nothing where that cannot be."""
    with contextlib.suppress(OSError):  # Windows opens no folder; some network file systems sync none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""Keeping two writers apart."""

from typing import IO

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two writers apart
    fcntl = None

AVAILABLE = fcntl is not None


def hold(file: IO) -> None:
    """Lock an open file for this process alone, until the file is closed or the process ends, however it ends.

    Nothing happens where there are no locks: on Windows, and on some network file systems.

    Raises:
        BlockingIOError: another open file holds the lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # this file system has no locks
        return

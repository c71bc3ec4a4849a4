"""Keeping a second writer out of a file or folder."""

from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second writer out
    fcntl = None

AVAILABLE = fcntl is not None


def hold(file: IO) -> None:
    """Lock an open file for this process only, until the file is closed or the process ends in any way.

    On Windows and on some network file systems, where there are no locks, nothing happens.

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

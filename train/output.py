"""Lines for the user. A reader that has gone away, or a full disk behind the log, never ends a run."""

import contextlib
import errno
import os
import sys
import warnings
from typing import TextIO

GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET)


def say(line: str) -> None:
    """A line for the user, not lost in a pipe's buffer."""
    _write(sys.stdout, line)


def warn(line: str) -> None:
    """Something to know that does not end the run."""
    _write(sys.stderr, f"warning: {line}")


def complain(line: str) -> None:
    """Why the command ends."""
    _write(sys.stderr, f"error: {line}")


def say_in_handler(line: str) -> None:
    """A line from a signal's handler, which may have interrupted `say`: past the buffer, which is no place for two."""
    try:
        os.write(sys.stdout.fileno(), f"{line}\n".encode())
    except (OSError, ValueError, AttributeError):  # no reader; no such descriptor; no standard output at all
        return


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a user looks at the stream."""
    return stream is not None and stream.isatty()


class Forgiving:
    """A text stream that forgets what cannot be written, for a progress bar on a terminal that may close."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Write if possible."""
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush if possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def prepare_process() -> None:
    """What a process of its own needs: descriptors 0 to 2 taken, so that no file of ours gets one; plain warnings."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    warnings.showwarning = lambda message, *_: warn(str(message))


def finish() -> None:
    """Flush both streams, or silence them, so that the interpreter's own last flush cannot fail."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                _silence(stream)


def _write(stream: TextIO | None, line: str) -> None:
    if stream is None:  # the process was started with it closed
        return
    try:
        print(line, file=stream, flush=True)
    except OSError as error:
        if error.errno in GONE:
            _silence(stream)


def _silence(stream: TextIO) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, stream.fileno())
    finally:
        os.close(nothing)

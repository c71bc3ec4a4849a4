"""Standard output and error of all commands, whatever the console can show, and even if its reader is gone.

A command whose output matters prints with `put`, which fails if the disk is full. A training run prints with `say`,
which never fails, because a run must not end only because its log cannot be written.
"""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO

# Errors of writing to a pipe, a terminal or a socket whose reader has gone.
GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET)


class StreamError(Exception):
    """Standard output cannot be written although its reader is there: its disk is full, for example."""


def prepare_streams() -> None:
    r"""Let standard output and error write characters that their encoding lacks as escapes, such as \xb2.

    Without this, a file name with a character beyond the console's code page ends the program. A stream that was closed
    before the program began is replaced by one that drops what is written.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, open until the program ends
        elif hasattr(stream, "reconfigure"):  # a test or a notebook may have replaced it
            stream.reconfigure(errors="backslashreplace")


def put(line: str) -> None:
    """Print a line on standard output; it is dropped if the reader is gone, as in `| head -1`.

    Raises:
        StreamError: the line cannot be written for another reason.
    """
    with _reader_may_be_gone(sys.stdout):
        print(line, flush=True)


def say(line: str) -> None:
    """Print a line on standard output. A line that cannot be written is not an error; later lines are tried again."""
    with contextlib.suppress(StreamError):
        put(line)


def complain(line: str) -> None:
    """Print a text on standard error as one line. A line that cannot be written is not an error."""
    if sys.stderr is not None:  # `print` would write to standard output
        with contextlib.suppress(StreamError), _reader_may_be_gone(sys.stderr):
            print(" ".join(line.split("\n")), file=sys.stderr, flush=True)


def warn(line: str) -> None:
    """Print a warning on standard error as one line. A line that cannot be written is not an error."""
    complain(f"warning: {line}")


def say_in_handler(line: str) -> None:
    """`say` for a signal handler. It bypasses the stream's buffer, because the handler may have interrupted `say`."""
    # OSError: the reader is gone; ValueError, AttributeError: the stream has no descriptor, or there is no stream
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Within the block, Python's warnings are printed by `warn`, without their place in the code."""
    before = warnings.showwarning
    warnings.showwarning = lambda message, *_: warn(str(message))
    try:
        yield
    finally:
        warnings.showwarning = before


def flush() -> None:
    """Write what standard output still holds; it is dropped if the reader is gone.

    Raises:
        StreamError: the text cannot be written for another reason.
    """
    with _reader_may_be_gone(sys.stdout):
        sys.stdout.flush()


def finish() -> None:
    """Flush both streams at the end of a process. What cannot be written is dropped.

    Without this, Python itself would try to write it, and print a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                _send_nowhere(stream)


def encodable(text: str) -> bool:
    """Whether standard output can show a text without escapes."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is shown on a terminal."""
    return stream is not None and stream.isatty()


class Forgiving:
    """A text stream that drops what cannot be written, for a progress bar on a terminal that may be closed."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        """Write the text if possible."""
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        with contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def _reader_may_be_gone(stream: TextIO) -> Iterator[None]:
    """Send the stream's output nowhere if its reader is gone; Python would try again when it exits."""
    try:
        yield
    except OSError as error:
        if error.errno not in GONE:
            raise StreamError(f"standard output cannot be written ({error.strerror})") from None
        _send_nowhere(stream)


def _send_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)

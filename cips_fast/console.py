"""Standard output and error of the two command lines, whatever the console can show, and even if its reader is gone."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class StreamError(Exception):
    """Standard output cannot be written, though its reader is there: its disk is full, for example."""


def prepare_streams() -> None:
    r"""Let standard output and error write characters that their encoding lacks as escapes, such as \xb2.

    Without this, a file name or a line with a character beyond the console's code page ends the program. A stream that
    was closed before the program began is replaced by one that drops what is written.
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


def complain(line: str) -> None:
    """Print a text on standard error as one line; it is dropped if it cannot be written."""
    with contextlib.suppress(StreamError), _reader_may_be_gone(sys.stderr):
        print(" ".join(line.split("\n")), file=sys.stderr, flush=True)


def flush() -> None:
    """Write what standard output still holds; it is dropped if the reader is gone.

    Raises:
        StreamError: it cannot be written for another reason.
    """
    with _reader_may_be_gone(sys.stdout):
        sys.stdout.flush()


def encodable(text: str) -> bool:
    """Whether standard output can show a text without escapes."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def _reader_may_be_gone(stream: TextIO) -> Iterator[None]:
    """Drop what cannot be written; Python would try again when it exits, and print a traceback."""
    try:
        yield
    except BrokenPipeError:
        _send_nowhere(stream)
    except OSError as error:
        _send_nowhere(stream)
        raise StreamError(f"standard output cannot be written ({error.strerror})") from None


def _send_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)

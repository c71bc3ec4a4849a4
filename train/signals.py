"""Signals that end a run: the first one asks for an orderly end, the second one ends the run at once.

This file imports nothing of the package, so that it is in charge before PyTorch is imported.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], None]
# SIGBREAK is Ctrl-Break on Windows, which has no SIGHUP.
NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


class Abandoned(BaseException):
    """The process was asked to end at once. Not an Exception, so nothing on the way takes it for a failure of its own.

    Attributes:
        status: the exit status, 128 + the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def quit_at_once() -> None:
    """Until another handler is in charge, end the process in silence: nothing is to be saved yet, or any more."""
    for number in _heeded():
        signal.signal(number, _quit)


def ignore() -> None:
    """Ignore signals from now on: the process is about to end, and Python would give them back their default."""
    for number in _heeded():
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def abandoning() -> Iterator[None]:
    """A signal raises Abandoned in the block, so that files are cleaned up; a second one ends the process.

    Not for imports of others' code, which may swallow any exception, and with it the signal.
    """
    came = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            _quit(number, frame)
        came = True
        raise Abandoned(number)

    with _handling(handle):
        yield


class StopRequest:
    """What signals have asked for so far.

    Attributes:
        signal: number of the first signal; None before it.
        abandoned: whether a second signal was obeyed.
    """

    def __init__(self, answer: Callable[[], None] = lambda: None) -> None:
        """`answer` is called at once, in the signal's handler, when the first signal comes."""
        self.signal: int | None = None
        self.abandoned = False
        self._answer = answer
        self._finishing = False
        self._deferred: int | None = None

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take over all signals while the block runs."""
        with _handling(self._handle):
            yield self

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Let the block end before a second signal is obeyed. A third one is obeyed at once."""
        self._finishing = True
        try:
            yield
        finally:
            self._finishing = False
        if self._deferred is not None:
            self._abandon(self._deferred)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.abandoned:
            _quit(number, frame)
        if self.signal is None:
            self.signal = number
            self._answer()
        elif self._finishing and self._deferred is None:
            self._deferred = number
        else:
            self._abandon(number)

    def _abandon(self, number: int) -> None:
        self.abandoned = True
        raise Abandoned(number)


def _heeded() -> list[int]:
    """All signals but a SIGHUP that is ignored: the run was started by nohup, and outlives its terminal."""
    return [n for n in NUMBERS if n != getattr(signal, "SIGHUP", None) or signal.getsignal(n) != signal.SIG_IGN]


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _heeded()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def _quit(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)

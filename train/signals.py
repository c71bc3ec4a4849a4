"""Signals that end a run: the first one asks for an orderly end, the second one ends the run at once.

This file imports nothing of the package, so its handlers can be installed before PyTorch is imported.
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
    """The process was asked to end at once. It is no Exception, so that no `except Exception` catches it.

    Attributes:
        status: the exit status, 128 + the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


def quit_at_once() -> None:
    """From now on, end the process without a message at a signal. For the times when there is nothing to save."""
    for number in _handled():
        signal.signal(number, _quit)


def ignore() -> None:
    """Ignore signals from now on: the process is about to end, and Python would restore their default actions."""
    for number in _handled():
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def abandoning() -> Iterator[None]:
    """In the block, a signal raises Abandoned, so that files are cleaned up; a second signal ends the process.

    Do not use it around imports of other packages: those may catch any exception, and the signal would be lost.
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
    """What the signals so far have asked for.

    Attributes:
        signal: number of the first signal; None if none has come.
        abandoned: whether a second signal was obeyed.
    """

    def __init__(self, answer: Callable[[], None] = lambda: None) -> None:
        """The first signal's handler calls `answer` at once."""
        self.signal: int | None = None
        self.abandoned = False
        self._answer = answer
        self._finishing = False
        self._deferred: int | None = None

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle all signals while the block runs."""
        with _handling(self._handle):
            yield self

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Obey a second signal only after the block has ended. A third one is obeyed at once."""
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


def _handled() -> list[int]:
    """All signals but a SIGHUP that is ignored: then nohup started the run, which has to outlive its terminal."""
    return [n for n in NUMBERS if n != getattr(signal, "SIGHUP", None) or signal.getsignal(n) != signal.SIG_IGN]


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _handled()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def _quit(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)

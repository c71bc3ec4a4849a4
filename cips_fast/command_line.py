"""Reading a command line: bad input is answered with one line, and every number has a range."""

import argparse
import contextlib
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from . import console
from .checks import ArgumentError, shown

# PyTorch reports that memory ran out by the text of a RuntimeError; Python and NumPy raise MemoryError.
OUT_OF_MEMORY = re.compile(
    "can't allocate memory|not enough memory|out of memory|storage size calculation overflowed|can't start new thread",
    re.IGNORECASE,
)


class OptionError(ValueError):
    """An option or argument of a command line that cannot be used; the message is one line for the user."""


def option_of(name: str) -> str:
    """The option whose value `argparse` stores under a name: `--pixel-chunk` for `pixel_chunk`."""
    return f"--{name.replace('_', '-')}"


@contextlib.contextmanager
def named_after_options(options: Mapping[str, str]) -> Iterator[None]:
    """Within the block, an error about an argument of the library becomes one about the option that set the argument.

    Args:
        options: the option by the argument's name, such as {"half_resolution": "--falloff"}. An argument that is not
            in it keeps its own name.

    Raises:
        OptionError: the block raised an `ArgumentError`.
    """
    try:
        yield
    except ArgumentError as error:
        raise OptionError(f"{options.get(error.name, error.name)}: {error.reason}") from None


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that prints each error as one line, and that accepts values such as -1,-1,1,1."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # A text that begins like a number is a value, not an option; argparse's own pattern knows single numbers only.
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Print a message of argparse, such as `argument --size: ...`, in one line, and end with status 2."""
        console.complain(f"error: {self.line_of(message)}")
        sys.exit(2)

    def line_of(self, message: str) -> str:
        """A message of argparse in the style of this library, such as `--size: ...`.

        argparse passes its errors on as text alone.
        """
        match = re.fullmatch(r"argument ([^\s:/]+)\S*: (.*)", message, re.DOTALL)
        if match:
            message = f"{match[1]}: {match[2].replace('argument ', '')}"
        return message if ": got " in message else f"{message} (see {self.prog} --help)"

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            allowed = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"got {shown(value)}, must be one of {allowed}")


def whole_number(least: int, most: int, rule: str = "") -> Callable[[str], int]:
    """A parser of a whole number from `least` to `most`, for an argument's `type`; an error quotes `rule`."""
    rule = rule or f"must be at least {least} and at most {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # not a number, or a number with more digits than Python reads
            message = f"got {shown(text)}, must be a whole number; it {rule}"
            raise argparse.ArgumentTypeError(message) from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"got {shown(value)}, {rule}")
        return value

    return parse


def number(least: float, most: float, *, above: bool = False) -> Callable[[str], float]:
    """A parser of a finite number from `least` to `most`, for an argument's `type`; `above` excludes `least`."""
    rule = f"must be {'more than' if above else 'at least'} {least:g} and at most {most:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"got {shown(text)}, must be a number; it {rule}") from None
        if not (least < value if above else least <= value) or not value <= most:
            raise argparse.ArgumentTypeError(f"got {shown(value)}, {rule}")
        return value

    return parse


def numbers(count: int, largest: float = math.inf) -> Callable[[str], tuple[float, ...]]:
    """A parser of `count` finite numbers with commas between them, of magnitudes up to `largest`."""
    rule = f"must be {count} numbers with commas between them"
    if largest < math.inf:
        rule += f", from {-largest:g} to {largest:g}"

    def parse(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(part) for part in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count or not all(abs(value) < math.inf and abs(value) <= largest for value in values):
            raise argparse.ArgumentTypeError(f"got {shown(text)}, {rule}")
        return values

    return parse


def png_path(text: str) -> Path:
    """The path of a PNG file that can be written, for an argument's `type`."""
    path = Path(text)
    if path.suffix.lower() != ".png" or not os.path.isdir(path.parent) or os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"got {shown(text)}, must be a .png in a folder that exists")
    return path


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that Python, NumPy or PyTorch could not allocate memory."""
    if isinstance(error, RuntimeError):
        return OUT_OF_MEMORY.search(str(error)) is not None
    return isinstance(error, MemoryError)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. It ends a command as Ctrl-C does, with another exit status."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within the block, SIGTERM raises `Terminated`, so that temporary files are removed on the way out."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set a handler
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

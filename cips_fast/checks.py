"""Checks of arguments: type and range, with messages that stay short whatever the value is."""

import math
import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 200
_short.maxlist = _short.maxtuple = 10
MAX_SHOWN_CHARACTERS = 80
MAX_SHOWN_BITS = 256  # of a whole number; Python refuses to print very long ones


class ArgumentError(ValueError):
    """An argument that a function does not take. The text of the error is `name: reason`.

    Attributes:
        name: the argument's name.
        reason: the value that the function got, and what the value must be.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that the error can be pickled
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def argument_os_error(kind: type[OSError], name: str, reason: str, number: int | None = None) -> OSError:
    """An OSError about an argument, with the attributes `name` and `reason` of an `ArgumentError`.

    Args:
        kind: the class of the error, such as FileNotFoundError.
        number: the error's `errno`, if there is one.
    """
    text = f"{name}: {reason}"
    error = kind(text) if number is None else kind(number, text)
    error.name, error.reason = name, reason
    return error


def shown(value: Any) -> str:
    """A value as error messages show it: its repr, shortened if it is long. The time for this is bounded as well."""
    if isinstance(value, str) and len(value) > MAX_SHOWN_CHARACTERS:
        return f"{value[:MAX_SHOWN_CHARACTERS]!r}... ({len(value)} characters)"
    if isinstance(value, int) and value.bit_length() > MAX_SHOWN_BITS:
        return f"a number of {value.bit_length()} bits"
    text = _short.repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS + 2 else text[:MAX_SHOWN_CHARACTERS] + "..."


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(name, f"got {shown(value)}, may be {', '.join(map(repr, choices))}")


def checked_count(name: str, value: int, largest: int) -> int:
    """The value as an int. Raise ValueError unless it is a whole number from 1 to `largest`."""
    if not is_count(value, largest):
        raise ArgumentError(name, f"got {shown(value)}, must be a whole number from 1 to {largest}")
    return int(value)


def is_count(value: Any, largest: int) -> bool:
    """Whether the value is a whole number from 1 to `largest`; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= value <= largest


def checked_counts(name: str, value: Sequence[int], length: int, largest: int) -> list[int]:
    """The values as a list of int. Raise ValueError unless they are `length` whole numbers from 1 to `largest`."""
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == length
    if not listed or not all(is_count(each, largest) for each in value):
        raise ArgumentError(name, f"got {shown(value)}, must be {length} whole numbers from 1 to {largest}")
    return [int(each) for each in value]


def checked_number(name: str, value: float, largest: float) -> float:
    """The value. Raise ValueError unless it is a number from 0 to `largest`; NaN is not."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= largest:
        raise ArgumentError(name, f"got {shown(value)}, must be a number from 0 to {largest:g}")
    return value if isinstance(value, int) else float(value)


def check_finite(name: str, value: float) -> None:
    """Raise ValueError unless the value is a finite number."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise ArgumentError(name, f"got {shown(value)}, must be a finite number")


def check_flag(name: str, value: bool) -> None:
    """Raise ValueError unless the value is True or False."""
    if not isinstance(value, bool):
        raise ArgumentError(name, f"got {shown(value)}, must be True or False")

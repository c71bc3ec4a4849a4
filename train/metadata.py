"""The metadata of a training checkpoint: texts in the file, which are checked before they are used."""

import json
import math
from collections.abc import Callable, Mapping

from cips_fast.checkpoint import CHECKSUM

NAMES = ("cips_fast", "step", "last_r1", "scalers", "seconds")


def check_metadata(metadata: Mapping[str, str], scalers: Mapping[str, dict]) -> None:
    """Raise ValueError with a message of one line unless all entries are there and of the right type.

    Args:
        metadata: cips_fast, the generator's configuration as JSON; step, a whole number; last_r1 and seconds, numbers;
            scalers, the states of the loss scalers as JSON.
        scalers: states of this run's loss scalers; empty for those that do not scale.
    """
    if missing := [name for name in NAMES if name not in metadata]:
        raise ValueError(f"is damaged (it lacks {missing[0]!r})")
    # Otherwise a file whose checksum entry has a damaged name would count as a file without a checksum.
    if unknown := metadata.keys() - {*NAMES, CHECKSUM}:
        raise ValueError(f"is damaged (it has an unknown entry {min(unknown)!r})")
    step_in(metadata)
    for name in ("last_r1", "seconds"):
        if not _is_number(_parsed(metadata, name, float)):
            raise ValueError(f"is damaged ({name} is {metadata[name]!r}, must be a number)")
    if not isinstance(_parsed(metadata, "cips_fast", json.loads), dict):
        raise ValueError("is damaged (cips_fast is not a configuration)")
    held = _parsed(metadata, "scalers", json.loads)
    if not isinstance(held, dict) or held.keys() != scalers.keys():
        raise ValueError(f"is damaged (scalers must be those of {', '.join(scalers)})")
    for name, wanted in scalers.items():
        fits = isinstance(held[name], dict) and held[name].keys() == wanted.keys()
        if not fits or not all(_is_number(value) for value in held[name].values()) or held[name].get("scale", 1) <= 0:
            raise ValueError(f"is damaged (the state of scaler {name} must be numbers for {list(wanted)})")


def step_in(metadata: Mapping[str, str]) -> int:
    """The step of a checkpoint; ValueError if it is not a whole number."""
    text = metadata.get("step", "")
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"is damaged (step is {text!r}, must be a whole number)")
    return int(text)


def _parsed(metadata: Mapping[str, str], name: str, parse: Callable[[str], object]) -> object:
    try:
        return parse(metadata[name])
    except (ValueError, RecursionError):
        raise ValueError(f"is damaged ({name} cannot be read)") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

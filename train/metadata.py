"""The metadata of a training checkpoint: text in the file, checked before it is used."""

import json
import math
from collections.abc import Callable, Mapping

from cips_fast.checkpoint import CHECKSUM

NAMES = ("cips_fast", "step", "last_r1", "scalers", "seconds")


def check_metadata(metadata: Mapping[str, str], scalers: Mapping[str, dict]) -> None:
    """Raise ValueError, in one line, unless all is there and of the right type.

    Args:
        metadata: cips_fast, the generator's configuration in JSON; step, a whole number; last_r1 and seconds, numbers;
            scalers, the loss scalers' states in JSON.
        scalers: states of the run's own loss scalers, empty ones where nothing is scaled.
    """
    if missing := [name for name in NAMES if name not in metadata]:
        raise ValueError(f"is damaged (it lacks {missing[0]!r})")
    # A damaged name of the checksum would otherwise pass for a file without one.
    if unknown := metadata.keys() - {*NAMES, CHECKSUM}:
        raise ValueError(f"is damaged (it has an unknown entry {min(unknown)!r})")
    step_in(metadata)
    for name in ("last_r1", "seconds"):
        if not _is_number(_parsed(metadata, name, float)):
            raise ValueError(f"is damaged ({name} is {metadata[name]!r}, must be a number)")
    if not isinstance(_parsed(metadata, "cips_fast", json.loads), dict):
        raise ValueError("is damaged (cips_fast is no configuration)")
    held = _parsed(metadata, "scalers", json.loads)
    if not isinstance(held, dict) or held.keys() != scalers.keys():
        raise ValueError(f"is damaged (scalers must be those of {', '.join(scalers)})")
    for name, wanted in scalers.items():
        fits = isinstance(held[name], dict) and held[name].keys() == wanted.keys()
        if not fits or not all(_is_number(value) for value in held[name].values()) or held[name].get("scale", 1) <= 0:
            raise ValueError(f"is damaged (the state of scaler {name} must be numbers for {list(wanted)})")


def step_in(metadata: Mapping[str, str]) -> int:
    """The step of a checkpoint; ValueError if there is none."""
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

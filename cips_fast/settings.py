"""A generator's settings as a file holds them: checked before anything is built from them.

A file may say anything. What passes these checks can be built in bounded time, and without memory on the meta device.
"""

import json
from collections.abc import Mapping

from .generator import ACTIVATIONS, VARIANTS
from .modules import GEOMETRIES
from .untrusted import shown

LONGEST = 1 << 16  # characters of the JSON text
LARGEST_SIZE = 1 << 30
WIDEST = 1 << 16
COUNTS = {"style_features": WIDEST, "embedding_size": 1 << 20, "encoding_features": WIDEST, "mapping_layers": 1 << 10}
CHOICES = {"variant": VARIANTS, "activation": ACTIVATIONS, "geometry": GEOMETRIES}
REALS = ("max_frequency", "embedding_std")
LARGEST_REAL = 1e38  # twice this is a float32
FLAGS = ("integer_coords", "align_corners", "noise")
NAMES = ("size", "width", *COUNTS, *CHOICES, *REALS, *FLAGS)  # the keys of `CIPSGenerator.config`


def parse_settings(text: str) -> dict:
    """The settings in the JSON text that `checkpoint.save` writes, each of its type and within its range.

    Raises:
        ValueError: the text is no such JSON; the message names the setting, what it is and what it must be.
    """
    if len(text) > LONGEST:
        raise ValueError(f"settings: got {len(text)} characters, must be at most {LONGEST}")
    try:
        settings = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"settings: must be JSON ({reason})") from None
    if not isinstance(settings, dict):
        raise ValueError(f"settings: got {shown(settings)}, must be a JSON object")
    if unknown := [name for name in settings if name not in NAMES]:
        raise ValueError(f"unknown settings {_listed(unknown)}: was it written by a later version?")
    if missing := [name for name in NAMES if name not in settings]:
        raise ValueError(f"settings {_listed(missing)} are missing")
    check_settings(settings)
    return settings


def check_settings(settings: Mapping[str, object]) -> None:
    """Raise ValueError, naming the setting, unless each that is given is of its type and within its range.

    `size`, `width` and `activation` must be given.
    """
    size = settings["size"]
    if not _is_count(size, LARGEST_SIZE) or size < 4 or size & (size - 1):
        raise ValueError(f"size: got {shown(size)}, must be a power of two, 4 to {LARGEST_SIZE}")
    widths, blocks = settings["width"], size.bit_length() - 2
    if not isinstance(widths, list) or len(widths) != blocks or not all(_is_count(width, WIDEST) for width in widths):
        raise ValueError(f"width: got {shown(widths)}, must be {blocks} numbers, each 1 to {WIDEST}")
    for name in settings:
        _check_setting(name, settings[name])
    if settings["activation"] == "sinrelu" and any(width % 2 for width in widths):
        raise ValueError(f"width: got {shown(widths)}, must be even numbers with sinrelu")


def _check_setting(name: str, value: object) -> None:
    """One that depends on no other."""
    if name in COUNTS and not _is_count(value, COUNTS[name]):
        raise ValueError(f"{name}: got {shown(value)}, must be a whole number, 1 to {COUNTS[name]}")
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"{name}: got {shown(value)}, may be {', '.join(map(repr, CHOICES[name]))}")
    if name in REALS and (type(value) not in (int, float) or not 0 <= value <= LARGEST_REAL):
        raise ValueError(f"{name}: got {shown(value)}, must be a number, 0 to {LARGEST_REAL:g}")
    if name in FLAGS and not isinstance(value, bool):
        raise ValueError(f"{name}: got {shown(value)}, must be true or false")


def check_agreement(settings: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError, naming the setting, where one differs from what the shapes of a state dict show.

    What a missing tensor would have shown is not compared.
    """
    layers, mappings = _count(shapes, "layers.{}.weight"), _count(shapes, "mapping.layers.{}.weight")
    rows = {
        "style_features": "mean_latent",
        "embedding_size": "encoding.embedding",
        "encoding_features": "encoding.freq",
    }
    found = {name: shapes[tensor][0] for name, tensor in rows.items() if shapes.get(tensor)}
    found |= {"mapping_layers": mappings} if mappings else {}
    if layers:
        found["size"] = 2 << min(layers // 2, LARGEST_SIZE.bit_length())
        found["width"] = [next(iter(shapes[f"layers.{place}.weight"]), 0) for place in range(1, layers, 2)]
    for name in NAMES:
        if name in found and found[name] != settings[name]:
            raise ValueError(f"{name}: got {shown(settings[name])}, but the tensors are of {shown(found[name])}")


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _count(names: Mapping[str, object], pattern: str) -> int:
    """How many numbers from 0 on make the pattern a name that is there."""
    number = 0
    while pattern.format(number) in names:
        number += 1
    return number


def _listed(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")

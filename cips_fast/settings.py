"""A generator's settings as a file holds them: checked before anything is built from them.

A file may say anything. Here its settings are read, and compared with the tensors in the same file. `CIPSGenerator`
checks the type and range of each.
"""

import json
from collections.abc import Mapping

from .checks import ArgumentError, shown
from .generator import LARGEST_SIZE

LONGEST = 1 << 16  # characters of the JSON text
# The keys of `CIPSGenerator.config`.
NAMES = (
    *("size", "width", "style_features", "embedding_size", "encoding_features", "mapping_layers"),
    *("variant", "activation", "geometry"),
    *("max_frequency", "embedding_std"),
    *("integer_coords", "align_corners", "noise"),
)


def parse_settings(text: str) -> dict:
    """The settings in the JSON text that `checkpoint.save` writes: all of `NAMES` and no others, of any value.

    Raises:
        ValueError: the text is no such JSON; the message names the setting, what it is and what it must be.
    """
    if len(text) > LONGEST:
        raise ArgumentError("settings", f"got {len(text)} characters, must be at most {LONGEST}")
    try:
        settings = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ArgumentError("settings", f"must be JSON ({reason})") from None
    if not isinstance(settings, dict):
        raise ArgumentError("settings", f"got {shown(settings)}, must be a JSON object")
    if unknown := [name for name in settings if name not in NAMES]:
        raise ValueError(f"unknown settings {_listed(unknown)}: was it written by a later version?")
    if missing := [name for name in NAMES if name not in settings]:
        raise ValueError(f"settings {_listed(missing)} are missing")
    return settings


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
            raise ArgumentError(name, f"got {shown(settings[name])}, but the tensors are of {shown(found[name])}")


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

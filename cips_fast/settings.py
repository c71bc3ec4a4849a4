"""A generator's settings: `GeneratorConfig`, and how the settings in a file are read and checked.

A file may say anything. Here its settings are read, and compared with the tensors in the same file. `GeneratorConfig`
checks the type and range of each.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, fields
from typing import Any

from .checks import (
    ArgumentError,
    check_choice,
    check_flag,
    checked_count,
    checked_counts,
    checked_number,
    is_count,
    shown,
)
from .geometry import GEOMETRIES
from .modules import LARGEST_FREQUENCY, MOST_CELLS, MOST_FEATURES, MOST_MAPPING_LAYERS
from .reference import NETWORK_ACTIVATIONS as ACTIVATIONS

VARIANTS = ("skip", "res")
LARGEST_SIZE = 1 << 16
MOST_CHARACTERS = 1 << 16  # of the settings as JSON text

# Widths of blocks 0…8 in the released checkpoints; the paper itself counts a constant width of 512.
PUBLISHED_WIDTHS = {
    "skip": (512, 512, 512, 512, 512, 256, 128, 64, 32),
    "res": (512, 512, 512, 512, 512, 256, 128, 128, 64),
}


@dataclass(frozen=True)
class GeneratorConfig:
    """The settings of a `CIPSGenerator` that its checkpoints hold, each checked, with every default filled in.

    Args:
        size: native resolution, a power of two from 4 to 65536; it sets the number of blocks.
        variant: `skip` or `res`.
        width: channels of every layer, 1 to 65536; `published`, the released checkpoints' narrowing widths; or one
            number for each block. With `sinrelu` they are even. Kept as one number for each block.
        style_features: S, of z and of w, 1 to 65536.
        activation: `lrelu`, `sin` or `sinrelu`.
        geometry: a key of `cips_fast.geometry.GEOMETRIES`, such as `plane`, or `cylinder` for panoramas, whose x goes
            round once from -1 to 1, and whose native grid and embedding are twice as wide as high.
        embedding_size: rows of the coordinate embedding, 1 to 16384; `size` unless given.
        encoding_features: C of the encoding, 1 to 65536; the first block's width unless given.
        mapping_layers: depth of the mapping network, 1 to 64.
        max_frequency, embedding_std: initial ranges of the encoding, 0 to 1e6, see `FourierEncoding`.
        integer_coords: the native grid is counted in pixels instead of [-1, 1], as in some published checkpoints.
        align_corners: see `FourierEncoding`.
        noise: add per-pixel noise before every activation, as published checkpoints may; the paper has none.

    Raises:
        ValueError: a setting of another type, or out of its range.
    """

    size: int = 256
    _: KW_ONLY
    variant: str = "skip"
    width: int | str | Sequence[int] = 512
    style_features: int = 512
    activation: str = "lrelu"
    geometry: str = "plane"
    embedding_size: int | None = None
    encoding_features: int | None = None
    mapping_layers: int = 8
    max_frequency: float = 4.5**0.5
    embedding_std: float = 1.0
    integer_coords: bool = False
    align_corners: bool = True
    noise: bool = False

    def __post_init__(self):
        if not is_count(self.size, LARGEST_SIZE) or self.size < 4 or self.size & (self.size - 1):
            raise ArgumentError("size", f"got {shown(self.size)}, must be a power of two from 4 to {LARGEST_SIZE}")
        self._set("size", int(self.size))
        check_choice("variant", self.variant, VARIANTS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("geometry", self.geometry, tuple(GEOMETRIES))
        for name in ("integer_coords", "align_corners", "noise"):
            check_flag(name, getattr(self, name))
        if GEOMETRIES[self.geometry].wraps_any and self.integer_coords:
            raise ArgumentError("integer_coords", f"got True, must be False on a {self.geometry}")
        widths = _block_widths(self.width, self.variant, blocks=self.size.bit_length() - 2)
        if self.activation == "sinrelu" and any(each % 2 for each in widths):
            raise ArgumentError("width", f"got {shown(self.width)}, activation 'sinrelu' needs even numbers")
        self._set("width", widths)
        self._fill_in("encoding_features", widths[0])
        self._fill_in("embedding_size", self.size)
        self._check("style_features", checked_count, MOST_FEATURES)
        self._check("encoding_features", checked_count, MOST_FEATURES)
        self._check("embedding_size", checked_count, MOST_CELLS)
        self._check("mapping_layers", checked_count, MOST_MAPPING_LAYERS)
        self._check("max_frequency", checked_number, LARGEST_FREQUENCY)
        self._check("embedding_std", checked_number, LARGEST_FREQUENCY)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, in order, which JSON takes as they are."""
        return asdict(self)

    def _check(self, name: str, checked: Callable[[str, Any, Any], Any], largest: float) -> None:
        self._set(name, checked(name, getattr(self, name), largest))

    def _fill_in(self, name: str, default: int) -> None:
        if getattr(self, name) is None:
            self._set(name, default)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the way that frozen dataclasses themselves take


# The keys of `CIPSGenerator.config`.
NAMES = tuple(each.name for each in fields(GeneratorConfig))


def with_settings(function: Callable) -> Callable:
    """Let `help` and `inspect` list all settings in place of a method's `**settings`."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    settings = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type)
        for each in fields(GeneratorConfig)
        if each.name not in signature.parameters
    ]
    function.__signature__ = signature.replace(parameters=sorted([*own, *settings], key=lambda each: each.kind))
    return function


def parse_settings(text: str) -> dict:
    """The settings in the JSON text that `checkpoint.save` writes: all of `NAMES` and no others, of any value.

    Raises:
        ValueError: the text is no such JSON; the message names the setting, what it is and what it must be.
    """
    if len(text) > MOST_CHARACTERS:
        raise ArgumentError("settings", f"got {len(text)} characters, must be at most {MOST_CHARACTERS}")
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

    A setting whose tensor is missing is not compared.
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
        found["width"] = [next(iter(shapes[f"layers.{index}.weight"]), 0) for index in range(1, layers, 2)]
    for name in NAMES:
        if name in found and found[name] != settings[name]:
            raise ArgumentError(name, f"got {shown(settings[name])}, but the tensors are of {shown(found[name])}")


def _block_widths(width: int | str | Sequence[int], variant: str, blocks: int) -> list[int]:
    """Channels of every block, from what the caller gave."""
    if isinstance(width, str) and width == "published":
        if blocks > len(PUBLISHED_WIDTHS[variant]):
            raise ArgumentError(
                "width", f"'published' widths reach to size {2 ** (len(PUBLISHED_WIDTHS[variant]) + 1)}"
            )
        return list(PUBLISHED_WIDTHS[variant][:blocks])
    if is_count(width, MOST_FEATURES):
        return [int(width)] * blocks
    if isinstance(width, list | tuple):
        return checked_counts("width", width, blocks, MOST_FEATURES)
    raise ArgumentError(
        "width",
        f"got {shown(width)}, must be 'published', or one or {blocks} whole numbers from 1 to {MOST_FEATURES}",
    )


def _count(names: Mapping[str, object], pattern: str) -> int:
    """How many of the names that the pattern gives for 0, 1, 2, … are there, up to the first that is not."""
    number = 0
    while pattern.format(number) in names:
        number += 1
    return number


def _listed(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")

"""Asking for some of an image's pixels: what an evaluator is, and calling it for a bounded number at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import ArgumentError

# (rows int64 [N], columns int64 [N]) of a full image's pixels -> their colours, float32 [N, 3].
Evaluator = Callable[[Tensor, Tensor], Tensor]


def check_size(height: int, width: int) -> None:
    """Raise ValueError unless both are at least 1."""
    for name, size in (("height", height), ("width", width)):
        if size < 1:
            raise ArgumentError(name, f"got {size}, must be at least 1")


def check_chunk(chunk: int) -> None:
    """Raise ValueError unless it is at least 1."""
    if chunk < 1:
        raise ArgumentError("chunk", f"got {chunk}, must be at least 1")


def evaluate_in_chunks(evaluate: Evaluator, rows: Tensor, columns: Tensor, chunk: int) -> Tensor:
    """Colours [N, 3] of pixels, `chunk` at a time.

    Raises:
        ValueError: a chunk below 1, or the evaluator returned another shape.
    """
    check_chunk(chunk)
    parts = zip(rows.split(chunk), columns.split(chunk), strict=True)
    return torch.cat([check_colours(evaluate(*part), len(part[0])) for part in parts])


def check_colours(colours: Tensor, count: int) -> Tensor:
    """What an evaluator returned, or ValueError unless that is [count, 3]."""
    if colours.shape != (count, 3):
        raise ArgumentError("evaluate", f"it returned shape {list(colours.shape)}, must be [{count}, 3]")
    return colours

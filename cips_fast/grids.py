"""Coordinates: where an image's pixels lie. x goes right, y goes down, the trained area is [-1, 1]².

On a cylinder x goes round: from -1 to 1 is a full turn, and x + 2 is the same place as x.
"""

import math

import torch
from torch import Tensor

from .pixels import check_size

Region = tuple[float, float, float, float]
WHOLE: Region = (-1.0, -1.0, 1.0, 1.0)


def plane(
    height: int,
    width: int,
    region: Region = WHOLE,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """A regular grid over a rectangle: pixel 0 lies on the rectangle's first edge, pixel n - 1 on its last.

    Args:
        height, width: pixels, at least 1. A single pixel lies on the first edge.
        region: (x0, y0, x1, y1).

    Returns:
        Coordinates, x first, [height, width, 2].

    Raises:
        ValueError: a size below 1.
    """
    return _grid(*axes(height, width, region)).to(dtype).to(device)


def cylinder(
    height: int,
    width: int,
    region: Region = WHOLE,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """A regular grid over a part of a cylinder or all of it: after a turn, pixel `width` would lie on pixel 0.

    Args:
        height, width: pixels, at least 1.
        region: (x0, y0, x1, y1); x may go beyond ±1, round and round. Down it is as in `plane`.

    Returns:
        Coordinates, x first and in [-1, 1), [height, width, 2].

    Raises:
        ValueError: a size below 1.
    """
    return _grid(*axes(height, width, region, geometry="cylinder")).to(dtype).to(device)


def axes(height: int, width: int, region: Region = WHOLE, *, geometry: str = "plane") -> tuple[Tensor, Tensor]:
    """x of every column and y of every row of `plane`, or of `cylinder`, float64 [width] and [height], on the CPU.

    In float64, to be rounded once: any part of the axes then has the very coordinates of the whole.
    """
    check_size(height, width)
    x0, y0, x1, y1 = region
    y = torch.linspace(y0, y1, height, dtype=torch.float64)
    if geometry == "plane":
        return torch.linspace(x0, x1, width, dtype=torch.float64), y
    return around(x0 + (x1 - x0) / width * torch.arange(width, dtype=torch.float64)), y


def around(x: Tensor) -> Tensor:
    """The same place on a cylinder with x in [-1, 1): any shape."""
    return x - 2 * torch.floor((x + 1) / 2)


def on_cylinder(coords: Tensor) -> Tensor:
    """(cos πx, sin πx, y): where points lie on a cylinder of radius 1, [..., 2] -> [..., 3].

    The two edges of a turn, x = -1 and x = 1, are the same to the bit.
    """
    angle = math.pi * around(coords[..., :1])
    return torch.cat([angle.cos(), angle.sin(), coords[..., 1:]], -1)


def integer(height: int, width: int, *, device: torch.device | str | None = None) -> Tensor:
    """Pixel indices as coordinates, as some published checkpoints were trained: x = 0…W-1, y = 0…H-1, [H, W, 2]."""
    return plane(height, width, (0.0, 0.0, width - 1.0, height - 1.0), device=device)


def _grid(x: Tensor, y: Tensor) -> Tensor:
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1)

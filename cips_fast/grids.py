"""Coordinates: where an image's pixels lie. x goes right, y goes down, the trained area is [-1, 1]².

In a geometry whose x wraps, such as the cylinder, -1 to 1 is a full turn, and x + 2 is the same point as x.
"""

import torch
from torch import Tensor

from .geometry import GEOMETRIES, WHOLE, Region
from .pixels import check_size

__all__ = ["WHOLE", "Region", "axes", "cylinder", "integer", "plane", "regular"]


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
    return regular(height, width, region, geometry="plane", dtype=dtype, device=device)


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
    return regular(height, width, region, geometry="cylinder", dtype=dtype, device=device)


def regular(
    height: int,
    width: int,
    region: Region = WHOLE,
    *,
    geometry: str = "plane",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """A regular grid over a region of any geometry.

    Args:
        height, width: pixels, at least 1.
        region: (x0, y0, x1, y1); an axis that wraps may go beyond ±1.
        geometry: a key of `geometry.GEOMETRIES`.

    Returns:
        Coordinates, x first, in [-1, 1) on axes that wrap, [height, width, 2].

    Raises:
        ValueError: a size below 1.
    """
    return _grid(*axes(height, width, region, geometry=geometry)).to(dtype).to(device)


def axes(height: int, width: int, region: Region = WHOLE, *, geometry: str = "plane") -> tuple[Tensor, Tensor]:
    """x of every column and y of every row of `regular`, float64 [width] and [height], on the CPU.

    They are float64 and rounded once, by the caller: any part of the axes then has exactly the whole's coordinates.
    """
    check_size(height, width)
    return GEOMETRIES[geometry].axes(height, width, region)


def integer(height: int, width: int, *, device: torch.device | str | None = None) -> Tensor:
    """Pixel indices as coordinates, as some published checkpoints were trained: x = 0…W-1, y = 0…H-1, [H, W, 2]."""
    return plane(height, width, (0.0, 0.0, width - 1.0, height - 1.0), device=device)


def _grid(x: Tensor, y: Tensor) -> Tensor:
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1)

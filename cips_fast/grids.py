"""Coordinates: where an image's pixels lie. x goes right, y goes down, the trained square is [-1, 1]²."""

import torch
from torch import Tensor


def plane(
    height: int,
    width: int,
    region: tuple[float, float, float, float] = (-1.0, -1.0, 1.0, 1.0),
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
    for name, size in (("height", height), ("width", width)):
        if size < 1:
            raise ValueError(f"{name}: got {size}, must be at least 1")
    x0, y0, x1, y1 = region
    # In float64, which not every device has, and rounded once: a tile's coordinates are then those of the whole image.
    x = torch.linspace(x0, x1, width, dtype=torch.float64)
    y = torch.linspace(y0, y1, height, dtype=torch.float64)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).to(dtype).to(device)


def integer(height: int, width: int, *, device: torch.device | str | None = None) -> Tensor:
    """Pixel indices as coordinates, as some published checkpoints were trained: x = 0…W-1, y = 0…H-1, [H, W, 2]."""
    return plane(height, width, (0.0, 0.0, width - 1.0, height - 1.0), device=device)

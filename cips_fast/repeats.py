"""Pictures that continue over their edges: repeating one, and measuring how its opposite edges meet."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import ArgumentError
from .geometry import GEOMETRIES, Region
from .render import Picture


class Repeated(Picture):
    """A picture several times, next to and below itself; see `check_repeats` for where that is seamless.

    Args:
        picture: any.
        across, down: how many times, at least 1.
    """

    def __init__(self, picture: Picture, across: int, down: int):
        self.picture, self.dtype = picture, picture.dtype
        self.height, self.width = down * picture.height, across * picture.width
        self.x, self.y = picture.x.repeat(across), picture.y.repeat(down)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """A rectangle, float32 [3, h, w]. Pixels that occur in it several times are computed once."""
        row, rows_of_tile = _distinct(torch.arange(self.height)[rows] % self.picture.height)
        column, columns_of_tile = _distinct(torch.arange(self.width)[columns] % self.picture.width)
        pixels = self.picture.grid(self.picture.x[column], self.picture.y[row])
        return pixels[:, rows_of_tile.to(pixels.device)][..., columns_of_tile.to(pixels.device)]

    def colours(self, x: Tensor, y: Tensor) -> Tensor:
        return self.picture.colours(x, y)

    def fingerprint(self) -> str:
        return f"{self.picture.fingerprint()} {self.width}x{self.height}"


def check_repeats(across: int, down: int, region: Region, geometry: str) -> None:
    """Raise ValueError unless an image of the region may be repeated: more than once only where its edges meet."""
    shape = GEOMETRIES[geometry]
    for count, words, axis, wraps, meets in (
        (across, "across", "x", shape.wraps[0], shape.whole_turns(region)[0]),
        (down, "down", "y", shape.wraps[1], shape.whole_turns(region)[1]),
    ):
        if count > 1 and not wraps:
            raise ArgumentError("repeat", f"got {count} {words}, must be 1: {axis} does not wrap on a {geometry}")
        if count > 1 and not meets:
            raise ArgumentError(
                "repeat", f"got {count} {words}, must be 1: the region is not a whole turn along {axis}"
            )


class Seam(NamedTuple):
    """How two opposite edges of a picture meet, in colours of [-1, 1].

    Attributes:
        gap: largest difference between the colours at the two ends, which are the same points.
        step: mean difference between the last column and the first, or the last row and the first.
        beside: mean difference between neighbouring columns, or rows, next to the edge; `step` should be close to it.
    """

    gap: float
    step: float
    beside: float


def seam(picture: Picture, first: float, last: float, *, axis: str = "x") -> Seam:
    """Measure how a picture's last column meets its first, or its last row its first.

    `gap` compares the first end with the float64 just before the last end, since a picture may take the last end itself
    round to the first. A `Renderer` rounds coordinates to float32, and so does compare both ends themselves.

    Args:
        picture: any.
        first, last: coordinates of the two ends, which are the same points.
        axis: `x`, for columns, or `y`, for rows.
    """
    along, other = (picture.x, picture.y) if axis == "x" else (picture.y, picture.x)

    def line(position: float) -> Tensor:
        moved = torch.full_like(other, position)
        return picture.colours(moved, other) if axis == "x" else picture.colours(other, moved)

    gap = (line(first) - line(math.nextafter(last, first))).abs().max()
    lines = torch.stack([line(float(along[index % len(along)])) for index in (-2, -1, 0, 1)])
    before, step, behind = lines.diff(dim=0).abs().mean((1, 2)).tolist()
    return Seam(float(gap), step, (before + behind) / 2)


def _distinct(indices: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct indices, and for each of the given ones its position among them."""
    return indices.unique(return_inverse=True)

"""Geometries: what the x and y of an image's coordinates mean, and which of the two axes close to a circle.

x goes right and y goes down. [-1, 1]² is trained. On an axis that wraps, -1 to 1 is one full turn, and two coordinates
that differ by 2 are the same point. On the other axes -1 and 1 are the image's edges.

All code that depends on the geometry asks one of the objects in `GEOMETRIES`. To add a geometry, write one subclass of
`Geometry` and put an instance of it into that dict.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

Region = tuple[float, float, float, float]
WHOLE: Region = (-1.0, -1.0, 1.0, 1.0)


class Geometry(ABC):
    """What a geometry decides.

    Attributes:
        name: its key in `GEOMETRIES`, which options, `generator.geometry` and checkpoints hold.
        summary: its images, in a few words for a help text.
        wraps: whether the axes x and y are circles.
        aspect: width of the native image by its height; the embedding table has the same aspect. Training images have
            it too.
        dimensions: D, the numbers that `lift` makes of a point.
    """

    name: str
    summary: str
    wraps: tuple[bool, bool]
    aspect: int
    dimensions: int

    @abstractmethod
    def lift(self, coords: Tensor) -> Tensor:
        """What the Fourier features see of points: [..., 2] -> [..., D]. Where an axis wraps, it has no edge there."""

    @property
    def wraps_any(self) -> bool:
        """Whether an axis wraps, so that a patch of the size of the whole image may lie anywhere on that axis."""
        return any(self.wraps)

    def size(self, rows: int) -> tuple[int, int]:
        """(height, width) of a native image, or of an embedding table, with this many rows."""
        return rows, self.aspect * rows

    def axes(self, height: int, width: int, region: Region = WHOLE) -> tuple[Tensor, Tensor]:
        """x of every column and y of every row of a regular grid over a region, float64 [width] and [height].

        The first pixel lies on the region's first edge. On an axis that wraps, pixel n would lie on the second edge; on
        any other axis, pixel n - 1 does.
        """
        x0, y0, x1, y1 = region
        wraps_x, wraps_y = self.wraps
        return _axis(x0, x1, width, wraps_x), _axis(y0, y1, height, wraps_y)

    def intervals(self, height: int, width: int) -> tuple[int, int]:
        """Into how many intervals the pixels divide [-1, 1] along x and along y."""
        wraps_x, wraps_y = self.wraps
        return width if wraps_x else width - 1, height if wraps_y else height - 1

    def table_coords(self, coords: Tensor) -> Tensor:
        """Where the embedding table is read for points, within [-1, 1) on axes that wrap: [..., 2] -> [..., 2]."""
        if not self.wraps_any:
            return coords
        parts = [
            around(_along(coords, axis)) if wraps else _along(coords, axis) for axis, wraps in enumerate(self.wraps)
        ]
        return torch.cat(parts, -1)

    def table(self, embedding: Tensor) -> Tensor:
        """The table that is read over [-1, 1]: the first cells follow the last on axes that wrap, [H, W, C]."""
        wraps_x, wraps_y = self.wraps
        table = torch.cat([embedding, embedding[:, :1]], 1) if wraps_x else embedding
        return torch.cat([table, table[:1]], 0) if wraps_y else table

    def is_trained(self, region: Region) -> bool:
        """Whether a region lies within what was trained, which has no end on axes that wrap."""
        x0, y0, x1, y1 = region
        wraps_x, wraps_y = self.wraps
        return (wraps_x or max(abs(x0), abs(x1)) <= 1) and (wraps_y or max(abs(y0), abs(y1)) <= 1)

    def whole_turns(self, region: Region) -> tuple[bool, bool]:
        """Whether a region's opposite edges are the same points, along x and along y."""
        x0, y0, x1, y1 = region
        wraps_x, wraps_y = self.wraps
        return wraps_x and _is_turns(x1 - x0), wraps_y and _is_turns(y1 - y0)

    def leads_back(self, shift: tuple[float, float]) -> bool:
        """Whether a shift by (dx, dy) takes every point to itself by turns round the axes that wrap."""
        return self.wraps_any and all(
            _is_turns(distance) if wraps else distance == 0 for distance, wraps in zip(shift, self.wraps, strict=True)
        )


class Plane(Geometry):
    """A flat square; no axis wraps."""

    name = "plane"
    summary = "square images"
    wraps = (False, False)
    aspect = 1
    dimensions = 2

    def lift(self, coords: Tensor) -> Tensor:
        """(x, y)."""
        return coords


class Cylinder(Geometry):
    """A panorama of 360 degrees, twice as wide as high: x wraps, and y has edges."""

    name = "cylinder"
    summary = "panoramas of 360 degrees, RES high and twice as wide"
    wraps = (True, False)
    aspect = 2
    dimensions = 3

    def lift(self, coords: Tensor) -> Tensor:
        """(cos πx, sin πx, y), on a cylinder of radius 1."""
        return torch.cat([*circle(coords[..., :1]), coords[..., 1:]], -1)


class Torus(Geometry):
    """A texture that tiles: x and y wrap, and the whole image is one period of it."""

    name = "torus"
    summary = "square textures that tile"
    wraps = (True, True)
    aspect = 1
    dimensions = 4

    def lift(self, coords: Tensor) -> Tensor:
        """(cos πx, sin πx, cos πy, sin πy)."""
        return torch.cat([*circle(coords[..., :1]), *circle(coords[..., 1:])], -1)


def around(x: Tensor) -> Tensor:
    """The same point of a circle with x in [-1, 1): any shape."""
    return x - 2 * torch.floor((x + 1) / 2)


def circle(x: Tensor) -> tuple[Tensor, Tensor]:
    """cos πx and sin πx, with the same bits for x = -1 and x = 1: any shape."""
    angle = math.pi * around(x)
    return angle.cos(), angle.sin()


def _axis(first: float, last: float, pixels: int, wraps: bool) -> Tensor:
    if wraps:
        return around(first + (last - first) / pixels * torch.arange(pixels, dtype=torch.float64))
    return torch.linspace(first, last, pixels, dtype=torch.float64)


def _along(coords: Tensor, axis: int) -> Tensor:
    return coords[..., axis : axis + 1]


def _is_turns(distance: float) -> bool:
    return distance % 2 == 0


GEOMETRIES: dict[str, Geometry] = {geometry.name: geometry for geometry in (Plane(), Cylinder(), Torus())}

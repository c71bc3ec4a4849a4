"""Camera moves: the region of the image that each frame of a zoom or a pan shows."""

import math

from .checks import ArgumentError
from .grids import Region
from .walks import check_frames


def zoom(start: Region, end: Region, frames: int) -> list[Region]:
    """Regions that lead a camera from one region to another at a constant apparent speed.

    Sides change exponentially, s(t) = s₀ (s₁/s₀)ᵗ: every frame magnifies the one before by the same factor, so a deep
    zoom looks as fast at its end as at its beginning. An edge then lies at
    e(t) = e₀ + (e₁ - e₀) (s(t) - s₀) / (s₁ - s₀), so one point of the picture stays where it is. Between regions of one
    size the move is a pan at equal distances.

    Args:
        start, end: (x0, y0, x1, y1), the first and the last region; either both or neither may be mirrored
            (x0 > x1 or y0 > y1).
        frames: F, at least 2.

    Returns:
        F regions, each an argument for `grids.plane`.

    Raises:
        ValueError: a region has no extent, only one region is mirrored, or there are fewer than 2 frames.
    """
    check_frames(frames)
    for name, region in (("start", start), ("end", end)):
        if not all(map(math.isfinite, region)) or not all(_sides(region)):
            raise ArgumentError(name, f"got {region}, must be finite (x0, y0, x1, y1) with x0 != x1 and y0 != y1")
    ratios = [last / first for first, last in zip(_sides(start), _sides(end), strict=True)]
    if min(ratios) <= 0:
        raise ArgumentError("end", f"got {end}, which is mirrored against {start}, must be the same way round")
    return [_between(start, end, frame / (frames - 1), ratios) for frame in range(frames)]


def pan(region: Region, by: tuple[float, float], frames: int, *, closed: bool = False) -> list[Region]:
    """Regions from one to the same one moved by (x, y), at equal distances; see `zoom`.

    A closed pan stops one frame before the end. Moved by (2, 0) on a cylinder, it is a full turn, and its last frame is
    followed by its first.
    """
    x0, y0, x1, y1 = region
    end = (x0 + by[0], y0 + by[1], x1 + by[0], y1 + by[1])
    return zoom(region, end, frames + 1 if closed else frames)[:frames]


def magnified(region: Region, factor: float, centre: tuple[float, float]) -> Region:
    """The region around a centre (x, y) whose sides are those of the given region divided by a factor.

    Raises:
        ValueError: the factor is not positive.
    """
    if not 0 < factor < math.inf:
        raise ArgumentError("factor", f"got {factor}, must be a positive number")
    halves = [side / factor / 2 for side in _sides(region)]
    return centre[0] - halves[0], centre[1] - halves[1], centre[0] + halves[0], centre[1] + halves[1]


def _between(start: Region, end: Region, t: float, ratios: list[float]) -> Region:
    """The region at time t, 0 to 1, of a zoom whose width and height grow by the ratios in all."""
    shares = [_travelled(t, math.log(ratio)) for ratio in ratios]  # of the way along x and y
    edges = [(1 - shares[i % 2]) * start[i] + shares[i % 2] * end[i] for i in range(4)]
    return edges[0], edges[1], edges[2], edges[3]


def _sides(region: Region) -> tuple[float, float]:
    """Width and height, negative if mirrored."""
    x0, y0, x1, y1 = region
    return x1 - x0, y1 - y0


def _travelled(t: float, growth: float) -> float:
    """(gᵗ - 1) / (g - 1) for a size that grows by g = exp(growth); t if it does not grow."""
    return math.expm1(t * growth) / math.expm1(growth) if growth else t

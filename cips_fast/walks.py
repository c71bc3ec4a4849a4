"""What changes from picture to picture: latents on a walk or in a style-mixing matrix, regions on a camera's way."""

import math

import torch
from torch import Tensor

from .checks import ArgumentError, check_choice
from .generator import CIPSGenerator
from .grids import Region

KINDS = ("linear", "spherical", "spline")
OPPOSITE = 1e-6  # radians short of half a turn at which a great circle's way is anybody's guess


def walk(keys: Tensor, frames: int, kind: str = "linear", *, closed: bool = False) -> Tensor:
    """Latents along a way through the keys, at equal steps of t from key to key.

    linear       (1 - t)·a + t·b. Made for w, whose space the mapping has already straightened.
    spherical    `slerp`. Made for z, which is normally distributed: its length hardly varies.
    spline       the cubic spline through all keys: neither velocity nor acceleration jumps, so no key is felt as a
                 corner. An open one ends without acceleration (natural), a closed one goes on as it began (periodic);
                 C. de Boor, A Practical Guide to Splines, chapter IV.

    An open walk begins at the first key and ends at the last. A closed one goes on from the last key to the first and
    stops a step before it, so that the first frame follows the last as any frame follows the one before.

    Args:
        keys: [K, S], K of at least 2, finite.
        frames: F, at least 2. Every key is a frame if K divides F in a closed walk, K - 1 divides F - 1 in an open one.
        kind: one of `KINDS`.
        closed: whether it is a loop.

    Returns:
        [F, S] in the keys' dtype, on their device; computed in float64.

    Raises:
        ValueError: an argument that is none of these; on a sphere also a key that is zero or opposite to the next.
    """
    check_choice("kind", kind, KINDS)
    if keys.dim() != 2 or len(keys) < 2 or not keys.is_floating_point():
        raise ArgumentError(
            "keys", f"got {list(keys.shape)} of {keys.dtype}, must be floating-point [K, S], K at least 2"
        )
    if not bool(keys.isfinite().all()):
        raise ArgumentError("keys", "got values that are infinite or not numbers, must be finite")
    _check_frames(frames)
    points = keys.detach().to("cpu", torch.float64)  # not every device has float64
    segment, t = _places(len(points), frames, closed)
    following = (segment + 1) % len(points)
    if kind == "spline":
        slopes = _slopes(points, closed)
        way = _hermite(points[segment], points[following], slopes[segment], slopes[following], t)
    else:
        way = (slerp if kind == "spherical" else _lerp)(points[segment], points[following], t)
    return way.to(keys.dtype).to(keys.device)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical linear interpolation: along the great circle from a's direction to b's, the length changing evenly.

        (sin((1 - t)θ) â + sin(tθ) b̂) / sin θ · ((1 - t)|a| + t|b|),   θ the angle between a and b

    K. Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985, where lengths are 1. θ is twice the
    arctangent of |â - b̂| / |â + b̂|, exact for the smallest angles, and sin(tθ) / sin θ is t·sinc(tθ) / sinc(θ), which
    is t at θ = 0.

    Args:
        a, b: [..., S].
        t: 0 for a … 1 for b, [..., 1].

    Returns:
        [..., S].

    Raises:
        ValueError: an a or b is zero, or they point in opposite directions, between which there is no one way.
    """
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    if not all(bool((length > 0).all()) for length in lengths):
        raise ArgumentError("keys", "got one of zeros, which has no direction to go from on a sphere")
    a, b = a / lengths[0], b / lengths[1]
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    if bool((angle > math.pi - OPPOSITE).any()):
        raise ArgumentError("keys", "got neighbours in opposite directions, between which a sphere has no shortest way")
    shares = [share * _sinc(share * angle) / _sinc(angle) for share in (1 - t, t)]
    return (shares[0] * a + shares[1] * b) * _lerp(*lengths, t)


def mixing(generator: CIPSGenerator, w_rows: Tensor, w_columns: Tensor, crossover: int) -> Tensor:
    """Latents of a style-mixing matrix: a row's before layer `crossover`, a column's from it on.

    T. Karras et al., A Style-Based Generator Architecture for GANs, CVPR 2019, figure 3.

    Args:
        w_rows: [R, S].
        w_columns: [C, S].
        crossover: 0 (all the columns') to `generator.num_layers` (all the rows').

    Returns:
        [R, C, num_layers, S]; `[row]` or any other list of them is an argument for `generator.synthesis`.

    Raises:
        ValueError: the crossover is out of range, or the latents are not lists of vectors of one length.
    """
    if w_rows.dim() != 2 or w_columns.dim() != 2 or w_rows.shape[1] != w_columns.shape[1]:
        raise ArgumentError(
            "w_rows, w_columns", f"got {list(w_rows.shape)}, {list(w_columns.shape)}, must be [R, S], [C, S]"
        )
    rows, columns = len(w_rows), len(w_columns)
    mixed = generator.mix(w_rows.repeat_interleave(columns, 0), w_columns.repeat(rows, 1), crossover)
    return mixed.unflatten(0, (rows, columns))


def zoom(start: Region, end: Region, frames: int) -> list[Region]:
    """Regions that lead a camera from one to another at a constant apparent speed.

    Sides go exponentially, s(t) = s₀ (s₁/s₀)ᵗ: every frame magnifies the one before by the same factor, so that a deep
    zoom is as fast at its end as at its beginning. An edge then lies at e(t) = e₀ + (e₁ - e₀) (s(t) - s₀) / (s₁ - s₀):
    one point of the picture stays where it is. Between regions of one size it is a pan at equal steps.

    Args:
        start, end: (x0, y0, x1, y1), first and last of the regions; mirrored (x0 > x1 or y0 > y1) both or neither.
        frames: F, at least 2.

    Returns:
        F regions, each an argument for `grids.plane`.

    Raises:
        ValueError: a region without extent, one region mirrored and the other not, or fewer frames.
    """
    _check_frames(frames)
    for name, region in (("start", start), ("end", end)):
        if not all(map(math.isfinite, region)) or not all(_sides(region)):
            raise ArgumentError(name, f"got {region}, must be finite (x0, y0, x1, y1) with x0 != x1 and y0 != y1")
    ratios = [last / first for first, last in zip(_sides(start), _sides(end), strict=True)]
    if min(ratios) <= 0:
        raise ArgumentError("end", f"got {end}, which is mirrored against {start}, must be the same way round")
    steps = [[_travelled(frame / (frames - 1), math.log(ratio)) for ratio in ratios] for frame in range(frames)]
    return [tuple(_lerp(start[i], end[i], step[i % 2]) for i in range(4)) for step in steps]


def pan(region: Region, by: tuple[float, float], frames: int, *, closed: bool = False) -> list[Region]:
    """Regions from one to the same moved by (x, y), at equal steps; see `zoom`.

    A closed one stops a step before: on a cylinder, moved by (2, 0), a full turn whose first frame follows the last.
    """
    x0, y0, x1, y1 = region
    return zoom(region, (x0 + by[0], y0 + by[1], x1 + by[0], y1 + by[1]), frames + closed)[:frames]


def magnified(region: Region, factor: float, centre: tuple[float, float]) -> Region:
    """The part of a region's size / factor around a centre (x, y).

    Raises:
        ValueError: a factor that is not positive.
    """
    if not 0 < factor < math.inf:
        raise ArgumentError("factor", f"got {factor}, must be a positive number")
    halves = [side / factor / 2 for side in _sides(region)]
    return centre[0] - halves[0], centre[1] - halves[1], centre[0] + halves[0], centre[1] + halves[1]


def _places(keys: int, frames: int, closed: bool) -> tuple[Tensor, Tensor]:
    """The key before every frame [F], and how far the frame is on its way to the next [F, 1]."""
    segments, steps = (keys, frames) if closed else (keys - 1, frames - 1)
    # Divided last, so that a frame that falls on a key falls on it exactly.
    place = torch.arange(frames, dtype=torch.float64) * segments / steps
    segment = place.floor().clamp(max=segments - 1)
    return segment.long(), (place - segment)[:, None]


def _slopes(points: Tensor, closed: bool) -> Tensor:
    """Velocities at the keys with which cubic pieces also agree in acceleration, [K, S].

    m₋ + 4 m + m₊ = 3 (p₊ - p₋) at every key; 2 m + m₊ = 3 (p₊ - p) at an open end, where the acceleration is zero.
    """
    one = torch.eye(len(points), dtype=points.dtype)
    system = one.roll(1, 0) + 4 * one + one.roll(-1, 0)
    change = 3 * (points.roll(-1, 0) - points.roll(1, 0))
    if not closed:
        system[0], system[-1] = 2 * one[0] + one[1], 2 * one[-1] + one[-2]
        change[0], change[-1] = 3 * (points[1] - points[0]), 3 * (points[-1] - points[-2])
    return torch.linalg.solve(system, change)


def _hermite(a: Tensor, b: Tensor, slope_a: Tensor, slope_b: Tensor, t: Tensor) -> Tensor:
    """The cubic from a to b with these velocities at its ends, [F, S]."""
    s = 1 - t
    return s * s * (1 + 2 * t) * a + t * t * (1 + 2 * s) * b + s * t * (s * slope_a - t * slope_b)


def _lerp(a, b, t):
    """Between numbers or tensors, exact at both ends."""
    return (1 - t) * a + t * b


def _sinc(x: Tensor) -> Tensor:
    """sin(x)/x, 1 at 0."""
    return torch.sinc(x / math.pi)


def _sides(region: Region) -> tuple[float, float]:
    """Width and height, negative where mirrored."""
    x0, y0, x1, y1 = region
    return x1 - x0, y1 - y0


def _travelled(t: float, growth: float) -> float:
    """(gᵗ - 1) / (g - 1) for a size that grows by g = exp(growth); t where it does not grow."""
    return math.expm1(t * growth) / math.expm1(growth) if growth else t


def _check_frames(frames: int) -> None:
    if frames < 2:
        raise ArgumentError("frames", f"got {frames}, must be at least 2")

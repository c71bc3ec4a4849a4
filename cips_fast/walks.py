"""Latents that change from picture to picture: along a walk through given ones, or in a style-mixing grid."""

import math

import torch
from torch import Tensor

from .checks import ArgumentError, check_choice
from .generator import CIPSGenerator

KINDS = ("linear", "spherical", "spline")
OPPOSITE_RADIANS = 1e-6  # two directions whose angle is closer than this to π have no unique great circle


def walk(keys: Tensor, frames: int, kind: str = "linear", *, closed: bool = False) -> Tensor:
    """Latents on a path through the keys; from one key to the next, the time t grows evenly from 0 to 1.

    linear       (1 - t)·a + t·b, for w: the mapping has made straight lines in w meaningful.
    spherical    `slerp`, for z: it is normally distributed, so its length hardly varies.
    spline       the cubic spline through all keys. Neither its velocity nor its acceleration jumps, so no key is
                 visible as a corner. An open one ends without acceleration (natural), a closed one is periodic;
                 C. de Boor, A Practical Guide to Splines, chapter IV.

    An open walk begins at the first key and ends at the last. A closed walk also leads from the last key back to the
    first and stops one frame before it, so that repeating the frames shows no seam.

    Args:
        keys: [K, S], K of at least 2, finite.
        frames: F, at least 2. Every key is a frame if K divides F (closed walk) or K - 1 divides F - 1 (open walk).
        kind: one of `KINDS`.
        closed: whether the walk returns to its first key.

    Returns:
        [F, S] in the keys' dtype, on their device; computed in float64.

    Raises:
        ValueError: an argument is none of these, or a spherical walk has a key that is zero or opposite to the next.
    """
    check_choice("kind", kind, KINDS)
    if keys.dim() != 2 or len(keys) < 2 or not keys.is_floating_point():
        raise ArgumentError(
            "keys", f"got {list(keys.shape)} of {keys.dtype}, must be floating-point [K, S], K at least 2"
        )
    if not bool(keys.isfinite().all()):
        raise ArgumentError("keys", "got values that are infinite or not numbers, must be finite")
    check_frames(frames)
    points = keys.detach().to("cpu", torch.float64)  # not every device has float64
    segment, t = _segments(len(points), frames, closed)
    following = (segment + 1) % len(points)
    if kind == "spline":
        slopes = _slopes(points, closed)
        path = _hermite(points[segment], points[following], slopes[segment], slopes[following], t)
    else:
        path = (slerp if kind == "spherical" else _lerp)(points[segment], points[following], t)
    return path.to(keys.dtype).to(keys.device)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical linear interpolation: along the great circle from a's direction to b's, with evenly changing length.

        (sin((1 - t)θ) â + sin(tθ) b̂) / sin θ · ((1 - t)|a| + t|b|),   θ the angle between a and b

    K. Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985, where lengths are 1. θ is twice the
    arctangent of |â - b̂| / |â + b̂|, exact for the smallest angles, and sin(tθ) / sin θ is t·sinc(tθ) / sinc(θ), which
    is t at θ = 0.

    Args:
        a, b: [..., S].
        t: from 0 for a to 1 for b, [..., 1].

    Returns:
        [..., S].

    Raises:
        ValueError: an a or b is zero, or a and b point in opposite directions, which no unique great circle joins.
    """
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    if not all(bool((length > 0).all()) for length in lengths):
        raise ArgumentError("keys", "got one of zeros, which has no direction to go from on a sphere")
    a, b = a / lengths[0], b / lengths[1]
    angle = 2 * torch.atan2((a - b).norm(dim=-1, keepdim=True), (a + b).norm(dim=-1, keepdim=True))
    if bool((angle > math.pi - OPPOSITE_RADIANS).any()):
        raise ArgumentError("keys", "got neighbours in opposite directions, between which a sphere has no shortest way")
    shares = [share * _sinc(share * angle) / _sinc(angle) for share in (1 - t, t)]
    return (shares[0] * a + shares[1] * b) * _lerp(*lengths, t)


def style_mixing_grid(generator: CIPSGenerator, w_rows: Tensor, w_columns: Tensor, crossover: int) -> Tensor:
    """Latents of a style-mixing grid: those of a row for the layers before `crossover`, those of a column for the rest.

    T. Karras et al., A Style-Based Generator Architecture for GANs, CVPR 2019, figure 3.

    Args:
        w_rows: [R, S].
        w_columns: [C, S].
        crossover: index of a layer, from 0 (all layers have the column's latent) to `generator.num_layers` (all have
            the row's).

    Returns:
        [R, C, num_layers, S]; one of its rows [C, num_layers, S] is an argument for `generator.synthesis`.

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


def _segments(keys: int, frames: int, closed: bool) -> tuple[Tensor, Tensor]:
    """For every frame, the index of the key before it [F], and the time t since that key [F, 1], 0 to 1."""
    segments, intervals = (keys, frames) if closed else (keys - 1, frames - 1)
    # The division comes last, so that a frame that falls on a key falls on it exactly.
    time = torch.arange(frames, dtype=torch.float64) * segments / intervals  # in segments since the first key
    segment = time.floor().clamp(max=segments - 1)
    return segment.long(), (time - segment)[:, None]


def _slopes(points: Tensor, closed: bool) -> Tensor:
    """Velocities at the keys for which the accelerations of adjoining cubic pieces agree as well, [K, S].

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


def _lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Linear interpolation, exact at both ends."""
    return (1 - t) * a + t * b


def _sinc(x: Tensor) -> Tensor:
    """sin(x)/x, 1 at 0."""
    return torch.sinc(x / math.pi)


def check_frames(frames: int) -> None:
    """Raise ValueError unless there are at least 2 frames."""
    if frames < 2:
        raise ArgumentError("frames", f"got {frames}, must be at least 2")

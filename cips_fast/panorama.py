"""Panoramas of 360° from a generator of plane images: neighbouring latents blend along x.

J latents stand round a circle, u in [0, J). Between two of them a pixel's style is a mixture of theirs, exact for every
pixel (`mixing`), and the coordinate runs to and fro over what was trained, so that nothing ever jumps:

    x(u) = 1 - |2 (u mod 2) - 2|        -1 at u = 0, 1 at u = 1, -1 again at u = 2
    w(u) = (1 - σ(f)) w_j + σ(f) w_{j+1},   j + f = u - 1/2,   σ(f) = f² (3 - 2f)

A latent is seen pure at the middle of its part, where x = 0; parts that follow each other are mirrored.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import ArgumentError
from .generator import CIPSGenerator
from .pixels import check_size
from .render import Picture, digest, synthesise


class Panorama(Picture):
    """A closed panorama of latents.

    Args:
        generator: of plane images, in eval mode.
        w: style latents [J, S], or one a layer [J, num_layers, S]; J even, or the ends would not meet.
        height, width: pixels; J·height wide, the parts are squares.
        dtype: of the layers: float32, or bfloat16 or float16 under autocast.

    Raises:
        ValueError: an argument that is none of the above.
    """

    def __init__(
        self, generator: CIPSGenerator, w: Tensor, height: int, width: int, *, dtype: torch.dtype = torch.float32
    ):
        if generator.geometry != "plane":
            raise ArgumentError(
                "generator", f"got geometry {generator.geometry!r}, must be 'plane': it needs no blending"
            )
        if len(w) < 2 or len(w) % 2:
            raise ArgumentError(
                "w", f"got {len(w)} latents, must be an even number of at least 2: parts are mirrored in turn"
            )
        check_size(height, width)
        self.generator, self.w, self.dtype = generator, w, dtype
        self.height, self.width = height, width
        self.x = torch.arange(width, dtype=torch.float64) * (len(w) / width)  # u
        self.y = torch.linspace(-1, 1, height, dtype=torch.float64)

    def colours(self, x: Tensor, y: Tensor) -> Tensor:
        u = x % len(self.w)
        coords = torch.stack([1 - (2 * (u % 2) - 2).abs(), y], -1)
        first = (u - 0.5).floor()
        f = u - 0.5 - first
        share = f.square() * (3 - 2 * f)
        mix = torch.stack([1 - share, share], -1)
        rgb = torch.empty(len(u), 3, device=self.w.device)
        for j in first.unique():
            here = first == j
            pair = self.w[[int(j) % len(self.w), int(j + 1) % len(self.w)]]
            rgb[here.to(rgb.device)] = synthesise(self.generator, pair, coords[here], mix[here], self.dtype)
        return rgb

    def fingerprint(self) -> str:
        return digest(self.generator, self.dtype, self.w, self.x, self.y)


class Seam(NamedTuple):
    """How a panorama's edges meet, in colours of [-1, 1].

    Attributes:
        gap: largest difference between the colours at the two ends, which are one place.
        step: mean difference between the last column and the first.
        beside: the same between the columns on either side of them, what `step` is to be like.
    """

    gap: float
    step: float
    beside: float


def seam(picture: Picture, left: float, right: float) -> Seam:
    """Measure a closed panorama, whose coordinates x `left` and `right` are one place.

    Both sides are seen from within, the right one from the last number before it: what has been taken round to `left`
    could not differ from it.
    """

    def column(x: float) -> Tensor:
        return picture.colours(torch.full_like(picture.y, x), picture.y)

    gap = (column(left) - column(math.nextafter(right, left))).abs().max()
    columns = torch.stack([column(float(picture.x[at % picture.width])) for at in (-2, -1, 0, 1)])
    before, step, behind = columns.diff(dim=0).abs().mean((1, 2)).tolist()
    return Seam(float(gap), step, (before + behind) / 2)

"""Panoramas of 360° from a generator of plane images: neighbouring latents blend along x.

J latents lie on a circle, u in [0, J). Between two of them a pixel's style is a mixture of their styles, computed
exactly for every pixel (`pixel_styles`). The coordinate runs to and fro over what was trained, so that nothing jumps:

    x(u) = 1 - |2 (u mod 2) - 2|        -1 at u = 0, 1 at u = 1, -1 again at u = 2
    w(u) = (1 - σ(f)) w_j + σ(f) w_{j+1},   j + f = u - 1/2,   σ(f) = f² (3 - 2f)

At the middle of its part, where x = 0, a latent is seen unmixed. Neighbouring parts are mirrored.
"""

import torch
from torch import Tensor

from .checks import ArgumentError
from .generator import CIPSGenerator
from .geometry import GEOMETRIES
from .pixels import check_size
from .render import Picture, digest, synthesise


class Panorama(Picture):
    """A closed panorama of latents.

    Args:
        generator: in eval mode, of a geometry whose x does not wrap: a plane.
        w: style latents [J, S], or one a layer [J, num_layers, S]; J is even, since the ends would not meet otherwise.
        height, width: pixels; the parts are squares if the width is J·height.
        dtype: of the layers: float32, or bfloat16 or float16 under autocast.

    Raises:
        ValueError: an argument of another kind.
    """

    def __init__(
        self, generator: CIPSGenerator, w: Tensor, height: int, width: int, *, dtype: torch.dtype = torch.float32
    ):
        if GEOMETRIES[generator.geometry].wraps[0]:
            flat = " or ".join(repr(name) for name, geometry in GEOMETRIES.items() if not geometry.wraps[0])
            raise ArgumentError(
                "generator",
                f"got geometry {generator.geometry!r}, must be {flat}: its images need no blending",
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

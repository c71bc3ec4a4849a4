"""Small networks for tests, drawn at random."""

import torch

from cips_fast.kernels.network import Network, tapped_layers

from .accuracy import draw


def draw_network(
    rng: torch.Generator,
    *,
    batch: int = 2,
    channels: int = 12,
    widths: tuple[int, ...] = (16, 16, 16),
    residual: bool = False,
    cells: tuple[int, int] = (3, 4),
    dims: int = 2,
    dtype: torch.dtype = torch.float64,
    align_corners: bool = True,
) -> Network:
    """A network whose parameters are all of `dtype`, as float64 draws rounded to it."""
    inputs, last = [2 * channels, *widths[:-1]], len(widths) - 1
    tapped = tapped_layers(len(widths), residual)
    blocks = range(1, last, 2) if residual else ()

    def normal(*shape: int) -> torch.Tensor:
        return draw(rng, *shape).to(dtype)

    return Network(
        normal(channels, dims),
        normal(channels),
        normal(*cells, channels),
        [normal(o, i) for o, i in zip(widths, inputs, strict=True)],
        [normal(o) for o in widths],
        [normal(batch, i) for i in inputs],
        [normal(3, widths[layer]) for layer in tapped],
        [normal(3) for _ in tapped],
        [normal(batch, widths[layer]) for layer in tapped],
        [normal(widths[b + 1], inputs[b]) / 4 for b in blocks if inputs[b] != widths[b + 1]],
        residual,
        align_corners,
    )


def draw_points(rng: torch.Generator, *shape: int) -> torch.Tensor:
    """Coordinates in [-1, 1] and a little beyond, float32."""
    return torch.rand(*shape, generator=rng) * 2.2 - 1.1

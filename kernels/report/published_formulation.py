"""The published formulation: each sample has its own modulated weights, applied by grouped 1 × 1 convolutions.

The released CIPS code uses the layers of StyleGAN2: bias, activation and gain are separate passes, and coordinates and
features are images [B, C, H, W]. Arguments and results here have the shapes of `cips_fast.functional`; because channels
come first in memory, the conversion is a view. Parameters are cast to the dtype of the features, as under autocast.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..formulas import DEMODULATION_EPS, LRELU_GAIN, LRELU_SLOPE
from ..network import Network


def modulate(weight: Tensor, style: Tensor, *, demodulate: bool = True) -> Tensor:
    """Modulated weights: weight [O, I], style [B, I] -> [B, O, I]."""
    outputs, inputs = weight.shape
    w = weight.view(1, outputs, inputs, 1, 1) / math.sqrt(inputs) * style.view(-1, 1, inputs, 1, 1)
    if demodulate:
        w = w * torch.rsqrt(w.square().sum([2, 3, 4]) + DEMODULATION_EPS).view(-1, outputs, 1, 1, 1)
    return w.flatten(2)


def mod_fc(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor, *, demodulate: bool, activation: str) -> Tensor:
    """One layer: x [B, P, I], P a square number -> [B, P, O]."""
    batch, pixels, inputs = x.shape
    outputs, side = weight.shape[0], math.isqrt(pixels)
    w = modulate(weight, style, demodulate=demodulate).view(batch * outputs, inputs, 1, 1)
    images = x.mT.reshape(1, batch * inputs, side, side)
    y = F.conv2d(images, w.to(x.dtype), groups=batch).view(batch, outputs, side, side)
    y = y + bias.to(y.dtype).view(1, -1, 1, 1)
    if activation == "lrelu":
        y = F.leaky_relu(y, LRELU_SLOPE) * LRELU_GAIN
    return y.flatten(2).mT


def fourier_encode(
    coords: Tensor, freq: Tensor, phase: Tensor, table: Tensor, *, align_corners: bool, dtype: torch.dtype
) -> Tensor:
    """The encoding: coords [B, P, 2], P a square number; freq [C, 2], phase [C], table [H, W, C] -> [B, P, 2C]."""
    side = math.isqrt(coords.shape[1])
    grid = coords.unflatten(1, (side, side))  # [B, H, W, 2]
    waves = torch.sin(F.conv2d(grid.movedim(-1, 1), freq[:, :, None, None], phase))
    cells = table.movedim(-1, 0)[None].expand(len(coords), -1, -1, -1)
    embedding = F.grid_sample(cells, grid, mode="bilinear", padding_mode="border", align_corners=align_corners)
    return torch.cat([waves, embedding], 1).to(dtype).flatten(2).mT


def synthesis(network: Network, coords: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Colours at coordinates: float32 [P, 2], P a square number -> [B, P, 3] in `dtype`, the dtype of activations too.

    Raises:
        ValueError: a network with residual blocks.
    """
    if network.residual:
        raise ValueError("network: got residual blocks, must be without them")
    points = coords.expand(network.batch, -1, -1)
    x = fourier_encode(
        points, network.freq, network.phase, network.table, align_corners=network.align_corners, dtype=dtype
    )
    taps = iter(zip(network.tap_weights, network.tap_styles, network.tap_biases, strict=True))
    rgb = None
    for index, layer in enumerate(zip(network.weights, network.styles, network.biases, strict=True)):
        x = mod_fc(x, *layer, demodulate=True, activation="lrelu")
        if index in network.tapped:
            colours = mod_fc(x, *next(taps), demodulate=False, activation="linear")
            rgb = colours if rgb is None else rgb + colours
    return rgb

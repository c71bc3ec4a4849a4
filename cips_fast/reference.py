"""Every operation of CIPS in eager PyTorch: the specification that all other backends are tested against.

Source: Anokhin et al., "Image Generators with Conditionally-Independent Pixel Synthesis", arXiv 2011.13775; weight
modulation and demodulation from Karras et al., arXiv 1912.04958. The formulas are written as in the papers. They take
any floating dtype and can be differentiated any number of times.

    B images   P pixels   D coordinate dims   I, O channels   S style width   C encoding channels
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels.network import Network

# The specification has its own copy of the numbers in kernels/formulas.py; a test compares them.
EPS = 1e-8
LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)
ACTIVATIONS = ("lrelu", "linear", "sin", "sinrelu")  # of one layer
NETWORK_ACTIVATIONS = tuple(name for name in ACTIVATIONS if name != "linear")  # of all layers of a network


def rms_norm_ref(z: Tensor) -> Tensor:
    """z / sqrt(mean(z²) + 1e-8), the mean over the last dimension: [..., S] -> [..., S]."""
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + EPS)


def linear_ref(x: Tensor, weight: Tensor, bias: Tensor, lr_multiplier: float = 1.0) -> Tensor:
    """Equalised linear layer: x (m·W/√I)ᵀ + m·b with the learning-rate multiplier m: [..., I] -> [..., O]."""
    scale = lr_multiplier / math.sqrt(weight.shape[1])
    return F.linear(x, weight * scale, bias * lr_multiplier)


def fourier_encode_ref(coords: Tensor, freq: Tensor, phase: Tensor) -> Tensor:
    """sin(F c + φ): coords [..., P, D], freq [C, D], phase [C] -> [..., P, C]."""
    return torch.sin(coords @ freq.mT + phase)


def embed_coords_ref(coords: Tensor, table: Tensor, align_corners: bool = True) -> Tensor:
    """Bilinear read of a table at coordinates in [-1, 1], x first; beyond that range the border is read.

    With `align_corners` -1 and 1 are the centres of the outermost cells; without it they are the cells' outer edges.
    If a coordinate is NaN, the result is NaN.
    coords [..., P, 2], table [H, W, C] -> [..., P, C].
    """
    cells, weights = bilinear_cells_ref(coords, table.shape[0], table.shape[1], align_corners)
    return (table.flatten(0, 1)[cells] * weights[..., None]).sum(-2)  # [..., P, 4, C] -> [..., P, C]


def bilinear_cells_ref(coords: Tensor, height: int, width: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """The four cells around every coordinate and their weights: coords [..., P, 2] -> int64, float [..., P, 4]."""
    sizes = torch.tensor([width, height], dtype=coords.dtype, device=coords.device)
    position = (coords + 1) / 2 * (sizes - 1) if align_corners else ((coords + 1) * sizes - 1) / 2
    # On the border and beyond it the derivative is zero, as for `torch.nn.functional.grid_sample`.
    inside = (position > 0) & (position < sizes - 1)
    position = torch.where(inside, position, torch.minimum(position.detach().clamp(min=0), sizes - 1))  # [..., P, 2]
    low = position.detach().floor()
    x1, y1 = (position - low).unbind(-1)  # the share of the upper neighbour
    left, top = low.nan_to_num(0.0).long().unbind(-1)  # for NaN the weights are NaN and the cells are valid ones
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    cells = torch.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right], -1)
    weights = torch.stack([(1 - y1) * (1 - x1), (1 - y1) * x1, y1 * (1 - x1), y1 * x1], -1)
    return cells, weights


def modulate_ref(weight: Tensor, style: Tensor, demodulate: bool = True) -> Tensor:
    """W'[b,o,i] = W[o,i]·s[b,i]/√I, then W'[b,o,:] / sqrt(Σ_i W'[b,o,i]² + 1e-8) if demodulated.

    Where the sum overflows, in float32 from styles of about 1e19 on, the row is NaN.

    weight [O, I], style [B, I] -> [B, O, I].
    """
    w = weight * style[:, None, :] / math.sqrt(weight.shape[1])  # [B, O, I]
    if demodulate:
        w = w * inverse_norm_ref(w.square().sum(-1, keepdim=True))
    return w


def inverse_norm_ref(squares: Tensor) -> Tensor:
    """1 / sqrt(squares + 1e-8) of sums of squares; NaN if a sum overflowed, because 0 would silently be wrong."""
    return torch.rsqrt(squares + EPS).masked_fill(squares == math.inf, math.nan)


def activate_ref(x: Tensor, activation: str) -> Tensor:
    """`lrelu` √2·lrelu₀.₂(x); `sin` sin(x); `sinrelu` √2·[lrelu₀.₂(even channels); sin(odd channels)]; `linear` x.

    x [..., O] -> [..., O].
    """
    if activation == "lrelu":
        return F.leaky_relu(x, LRELU_SLOPE) * LRELU_GAIN
    if activation == "sin":
        return torch.sin(x)
    if activation == "sinrelu":
        halves = [F.leaky_relu(x[..., ::2], LRELU_SLOPE), torch.sin(x[..., 1::2])]
        return torch.cat(halves, -1) * LRELU_GAIN
    return x


def mod_fc_ref(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor | None = None,
    demodulate: bool = True,
    activation: str = "lrelu",
) -> Tensor:
    """activation(W' x + β): x [B|1, P, I], weight [O, I], style [B, I], bias [O] -> [B, P, O]."""
    y = x @ modulate_ref(weight, style, demodulate).mT  # [B, P, O]
    if bias is not None:
        y = y + bias.to(y.dtype)
    return activate_ref(y, activation)


def synthesis_ref(
    network: Network,
    coords: Tensor,
    table_coords: Tensor | None = None,
    *,
    activation: str = "lrelu",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A whole network, layer after layer.

    Args:
        network: the parameters.
        coords: [B|1, P, D].
        table_coords: where the embedding table is read [B|1, P, 2]; by default at `coords`.
        activation: activation of the layers; see `activate_ref`.
        dtype: dtype of everything after the encoding; by default that of the coordinates.

    Returns:
        Colours [B, P, 3], in float32 or a wider dtype.
    """
    x = fourier_encode_ref(coords, network.freq, network.phase)
    table_coords = coords if table_coords is None else table_coords
    x = torch.cat([x, embed_coords_ref(table_coords, network.table, network.align_corners)], -1)
    x = x if dtype is None else x.to(dtype)
    taps = iter(zip(network.tap_weights, network.tap_styles, network.tap_biases, strict=True))
    shortcuts = iter(network.shortcuts)
    rgb, before = 0, x
    for index, (weight, style, bias) in enumerate(zip(network.weights, network.styles, network.biases, strict=True)):
        before = x if index % 2 else before
        x = mod_fc_ref(x, weight.to(x.dtype), style.to(x.dtype), bias, activation=activation)
        if network.residual and index and index % 2 == 0:
            same = before.shape[-1] == x.shape[-1]
            x = (x + (before if same else before @ next(shortcuts).to(x.dtype).mT)) / math.sqrt(2)
        if index in network.tapped:
            weight, style, bias = next(taps)
            tap = mod_fc_ref(x, weight.to(x.dtype), style.to(x.dtype), bias, False, "linear")
            rgb = rgb + tap.to(torch.promote_types(tap.dtype, torch.float32))
    return rgb

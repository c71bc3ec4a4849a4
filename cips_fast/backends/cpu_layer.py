"""The arithmetic of a layer on a CPU, for the operators of one layer (cpu_ops.py) and of a network (cpu_network.py).

lrelu is positively homogeneous, √2·lrelu(W'x + β) = lrelu(√2·W'x + √2·β), so the gain is part of the small weights and
biases instead of a pass over the pixels. kernels/mod_fc.py says why only lrelu is fused.

    B images   g of them at once   P pixels   n pixels of a tile   I, O channels of a layer
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference as ref
from .torch_private import linear_with_post_op, onednn_multiplies_bfloat16

DTYPES = (torch.bfloat16, torch.float32)
MIN_FLOP_PER_CALL = 1 << 28  # an image with at least as many operations per product goes through a layer alone
CACHE_ELEMENTS = (2 << 20) // 4  # float32 elements in 2 MiB, a common size of a core's second-level cache


def mod_fc_cpu(
    x: Tensor, weight: Tensor, style: Tensor, bias: Tensor | None, demodulate: bool, activation: str
) -> Tensor:
    """`reference.mod_fc_ref` with the gain in the weights, made of PyTorch's operations: for any dtype and transform.

    x [B|1, P, I] -> [B, P, O].
    """
    gain = ref.LRELU_GAIN if activation == "lrelu" else 1.0
    w = ref.modulate_ref(weight * gain, style, False) if not demodulate else ref.modulate_ref(weight, style) * gain
    x = x.expand(w.shape[0], -1, -1)
    y = torch.bmm(x, w.mT) if bias is None else torch.baddbmm(bias * gain, x, w.mT)
    # The product's own backward does not read its output, so the activation may overwrite it.
    return F.leaky_relu_(y, ref.LRELU_SLOPE) if activation == "lrelu" else ref.activate_ref(y, activation)


@dataclass(frozen=True)
class Layer:
    """Modulated weights of a layer, and its bias; both include the gain."""

    w: Tensor  # in the compute dtype [B, O, I]
    bias: Tensor | None  # in the compute dtype [O]
    scale: Tensor  # W' = scale W s, float32 [B, O]
    gain: float


def modulated(
    weight: Tensor, style: Tensor, bias: Tensor | None, gain: float, demodulate: bool, dtype: torch.dtype
) -> Layer:
    """W' = scale W s with scale = g d/√I and d = 1/sqrt(Σ_i (W s)²/I + 1e-8), or d = 1 without demodulation.

    The sum is a small product of squared weights and squared styles. weight [O, I], style [B, I], bias [O].
    """
    weight, style = weight.float(), style.float()
    (O, I), B = weight.shape, style.shape[0]
    scale = style.new_full((B, O), gain / math.sqrt(I))
    if demodulate:
        scale *= ref.inverse_norm_ref(style.square() @ weight.square().mT / I)
    w, rounded = weight.new_empty(B, O, I, dtype=dtype), dtype != torch.float32
    for some in _images_in_cache(B, O * I):
        part = torch.mul(weight, style[some, None], out=None if rounded else w[some])
        part *= scale[some, :, None]
        if rounded:
            w[some] = part
    return Layer(w, None if bias is None else (bias.float() * gain).to(dtype), scale, gain)


def modulated_bwd(dw: Tensor, weight: Tensor, style: Tensor, layer: Layer, demodulate: bool) -> tuple[Tensor, Tensor]:
    """dW [O, I] and ds [B, I] from dw, the gradient of W', float32 [B, O, I]; dw is overwritten."""
    weight, style = weight.float(), style.float()
    dweight, dstyle = weight.new_zeros(weight.shape), style.new_empty(style.shape)  # dense, even if those are not
    along = torch.empty_like(layer.scale)
    for some in _images_in_cache(*dw.shape[:1], weight.numel()):
        part = dw[some]
        part *= layer.scale[some, :, None]
        dweight += (part * style[some, None]).sum(0)
        part *= weight
        dstyle[some] = part.sum(1)
        if demodulate:
            along[some] = (part @ style[some, :, None]).squeeze(2)  # Σ_i dW' W'
    if demodulate:  # ∂d/∂v = -d³ v, v = W s/√I, and d/√I = scale/g
        along *= (layer.scale / layer.gain).square()
        dweight -= weight * (along.mT @ style.square())
        dstyle -= style * (along @ weight.square())
    return dweight, dstyle


def images_at_once(batch: int, flop: int) -> list[slice]:
    """Groups of images that go through a layer together: single images if the product of one has enough operations."""
    if flop >= MIN_FLOP_PER_CALL:
        return [slice(image, image + 1) for image in range(batch)]
    return [slice(0, batch)] if batch else []


def apply_layer(x: Tensor, w: Tensor, bias: Tensor | None, lrelu: bool = True) -> Tensor:
    """x Wᵀ + β, or lrelu(x Wᵀ + β): x [g, n, I], w [g, O, I]. A single image is one oneDNN call, if there is oneDNN."""
    if len(w) == 1 and _has_post_op(x.dtype):
        return linear_with_post_op(x, w[0], bias, ref.LRELU_SLOPE if lrelu else None)
    y = torch.bmm(x, w.mT) if bias is None else torch.baddbmm(bias, x, w.mT)
    return F.leaky_relu_(y, ref.LRELU_SLOPE) if lrelu else y


@lru_cache
def _has_post_op(dtype: torch.dtype) -> bool:
    """Whether PyTorch's oneDNN takes this dtype on this processor, and sums every row of a float32 product alike.

    The oneDNN 3.10 in PyTorch 2.11 sums the last rows of a product in another order than the other rows, so the last
    bits of a pixel would depend on the pixels that are computed with it. oneDNN 3.12 does not do that.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype != torch.float32:
        return onednn_multiplies_bfloat16()
    version = re.search(r"(?:MKL-DNN|oneDNN) v(\d+)\.(\d+)", torch.__config__.show())
    return version is None or (int(version[1]), int(version[2])) >= (3, 12)


def product(a: Tensor, b: Tensor) -> Tensor:
    """[g, N, K] by [g, K, M]. For g = 1 it uses `mm`, which is faster than `bmm` for large matrices."""
    return torch.mm(a[0], b[0])[None] if len(a) == 1 else torch.bmm(a, b)


def _images_in_cache(count: int, elements: int) -> Iterator[slice]:
    """Groups of `count` images of `elements` float32 elements each; the images of a group fit in cache together."""
    group = max(1, CACHE_ELEMENTS // elements)
    return (slice(start, start + group) for start in range(0, count, group))

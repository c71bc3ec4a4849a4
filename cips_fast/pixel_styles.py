"""Pixel styles: a layer in which each pixel's style is a mix of the styles of a few anchors.

    y[p,o] = act(d[p,o] Σ_i W[o,i]·s[p,i]/√I · x[p,i] + β[o])        s[p] = Σ_j α[p,j] s_j

Every pixel would need its own weights, W·s[p], which do not fit in memory. But the style can multiply x instead of the
weights, so that one matrix product serves all pixels. The norm that demodulation divides by is a quadratic form in the
few α, whose coefficients depend on the anchors but not on the pixel:

    d[p,o]⁻² = Σ_i (W[o,i]·s[p,i])²/I + 1e-8 = Σ_{j≤k} (2 - [j=k]) α[p,j] α[p,k] q_jk[o] + 1e-8
    q_jk[o] = Σ_i W[o,i]² s_j[i] s_k[i]/I

    B images   P pixels   J anchors   I, O channels
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference as ref
from .backends import triton_ops
from .backends.autocast import autocast_dtype, without_autocast
from .backends.choice import resolve_backend
from .checks import ArgumentError


def mixed_fc(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    bias: Tensor | None,
    mix: Tensor,
    *,
    demodulate: bool = True,
    activation: str = "lrelu",
    backend: str = "auto",
) -> Tensor:
    """A ModFC layer with pixel styles, demodulated exactly; the top of this file has the equations.

    On backend `triton` it is one kernel if no gradient is needed. Else it is made of PyTorch's operations, which can be
    differentiated any number of times. Under autocast the product is in autocast's dtype.

    Args:
        x: features, floating [B|1, P, I].
        weight: raw weights [O, I].
        styles: the anchors' styles, after the affine layers [J, I].
        bias: [O], or None.
        mix: α, the weight of each anchor in a pixel's style [B, P, J].
        demodulate, activation, backend: see `functional.mod_fc`; sines are a separate pass.

    Returns:
        [B, P, O], in x's dtype or autocast's.

    Raises:
        ValueError: a shape does not fit.
    """
    _check(x, weight, styles, mix)
    dtype = autocast_dtype(x) or x.dtype
    gain = ref.LRELU_GAIN if activation == "lrelu" else 1.0  # lrelu(√2 v) = √2 lrelu(v)
    fused = resolve_backend(backend, x.device, dtype) == "triton" and not _differentiated(x, weight, styles, bias, mix)
    with without_autocast(x):
        if fused:
            y = triton_ops.mixed_fc(x.to(dtype), weight, styles, bias, mix, demodulate, activation == "lrelu")
            return y if activation == "lrelu" else ref.activate_ref(y, activation)
        y = F.linear((x * (mix @ styles)).to(dtype), (weight * (gain / math.sqrt(weight.shape[1]))).to(dtype))
        if demodulate:
            y = y * _inverse_norms(weight, styles, mix).to(dtype)
        if bias is not None:
            y = y + (bias * gain).to(dtype)
        return F.leaky_relu(y, ref.LRELU_SLOPE) if activation == "lrelu" else ref.activate_ref(y, activation)


def _inverse_norms(weight: Tensor, styles: Tensor, mix: Tensor) -> Tensor:
    """d [B, P, O], see the top of this file."""
    j, k = torch.triu_indices(len(styles), len(styles), device=mix.device)  # [pairs]
    q = (styles[j] * styles[k]) @ weight.square().mT / weight.shape[1]  # [pairs, O]
    pairs = mix[..., j] * mix[..., k] * (1 + (j < k).to(mix.dtype))  # [B, P, pairs]
    return ref.inverse_norm_ref((pairs @ q).clamp(min=0))  # only rounding makes the sum negative


def _differentiated(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _check(x: Tensor, weight: Tensor, styles: Tensor, mix: Tensor) -> None:
    I = weight.shape[1]
    if styles.dim() != 2 or styles.shape[1] != I:
        raise ArgumentError("styles", f"got shape {list(styles.shape)}, must be [J, {I}]")
    if x.dim() != 3 or x.shape[2] != I:
        raise ArgumentError("x", f"got shape {list(x.shape)}, must be [B|1, P, {I}]")
    if mix.dim() != 3 or mix.shape[1:] != (x.shape[1], len(styles)) or len(x) not in (1, len(mix)):
        batch = len(x) if len(x) > 1 else "B"
        raise ArgumentError("mix", f"got shape {list(mix.shape)}, must be [{batch}, {x.shape[1]}, {len(styles)}]")

"""A layer and the encoding on a CPU as PyTorch operators with fused backward passes, in the dtypes of cpu_layer.py.

    y = act(x W'ᵀ + β)    dz = dy act'(y)    dx = dz W'    dW' = dzᵀ x    dβ = Σ dz, all with the gain in W' and β

The forward pass is one oneDNN call per image, or a batched product and a pass; the backward pass is one pass and two
products. Nothing is recomputed: the forward pass saves W', and the sign of y gives the derivative of lrelu. If all
images share x, the backward products treat them as one image with B·O outputs, and so sum over images in float32.

The operators are registered with torch.library, and second derivatives are computed through the reference formulas, as
in triton_ops.py. Programs that `torch.export` saved refer to the operators' names and to the names of their arguments.
Therefore the operators keep the argument name `at` for what the rest of the package calls `table_coords`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .. import reference as ref
from .autocast import without_autocast
from .autograd import encoding_through_reference, layer_gain, layer_through_reference, save_encoding, save_layer
from .cpu_encoding import add_to_table, encode_into, phases, table_coords_bwd
from .cpu_layer import Layer, apply_layer, images_at_once, modulated, modulated_bwd, product
from .threads import spread

POINTS_PER_PIECE = 4096  # points that a thread encodes at a time


@custom_op("cips_fast::mod_fc_cpu", mutates_args=())
def mod_fc(
    x: Tensor, weight: Tensor, style: Tensor, bias: Tensor | None, demodulate: bool, lrelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, P, O] and W' [B, O, I] in x's dtype, and the scale in W', float32 [B, O]: x [B|1, P, I]."""
    with without_autocast(x):
        layer = modulated(weight, style, bias, layer_gain(lrelu), demodulate, x.dtype)
        return _apply(x, layer, lrelu), layer.w, layer.scale


def _apply(x: Tensor, layer: Layer, lrelu: bool) -> Tensor:
    (B, O, I), P = layer.w.shape, x.shape[1]
    # A call per image needs a copy of its result; in float32 the copy costs more than a batched product and a pass.
    images = images_at_once(B, 2 * P * O * I) if lrelu and x.dtype == torch.bfloat16 else [slice(B)]
    if len(images) <= 1:
        return apply_layer(x.expand(B, -1, -1), layer.w, layer.bias, lrelu)
    y = x.new_empty(B, P, O)
    for some in images:
        y[some] = apply_layer(x if len(x) == 1 else x[some], layer.w[some], layer.bias, lrelu)
    return y


@mod_fc.register_fake
def _(x: Tensor, weight: Tensor, style: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    (O, I), B = weight.shape, style.shape[0]
    return x.new_empty(B, x.shape[1], O), x.new_empty(B, O, I), x.new_empty(B, O, dtype=torch.float32)


@custom_op("cips_fast::mod_fc_cpu_bwd", mutates_args=())
def mod_fc_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor | None,
    y: Tensor | None,
    w: Tensor,
    scale: Tensor,
    demodulate: bool,
    want_x: bool,
    want_w: bool,
    want_bias: bool,
) -> list[Tensor]:
    """The wanted ones of the gradients of x, of weight and style, and of bias. y [B, P, O] is given for an lrelu."""
    gain, shared = layer_gain(y is not None), len(x) != len(w)
    gradients = []
    with without_autocast(dy):
        dz = _before_activation(dy, y, shared)
        if want_x:
            gradients.append(product(dz, w.flatten(0, 1)[None] if shared else w))
        if want_w:
            dw = product(dz.mT, x).view(w.shape).float()
            dweight, dstyle = modulated_bwd(dw, weight, style, Layer(w, None, scale, gain), demodulate)
            gradients += [dweight.to(weight.dtype), dstyle.to(style.dtype)]
        if want_bias:
            sums = dz.view(-1, len(bias)).sum(0)  # over pixels and images, also if the images share x
            gradients.append((sums.float() * gain).to(bias.dtype))
    return gradients


def _before_activation(dy: Tensor, y: Tensor | None, shared: bool) -> Tensor:
    """dz [B, P, O], or [1, P, B·O] if all images share x."""
    if shared:
        dy, y = dy.transpose(0, 1), None if y is None else y.transpose(0, 1)  # [P, B, O]
    if y is None:
        dz = dy.contiguous()
    else:
        dz = dy.new_empty(dy.shape)
        torch.ops.aten.leaky_relu_backward.grad_input(dy, y, ref.LRELU_SLOPE, True, grad_input=dz)
    return dz.flatten(1)[None] if shared else dz


@mod_fc_bwd.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor | None,
    y: Tensor | None,
    w: Tensor,
    scale: Tensor,
    demodulate: bool,
    want_x: bool,
    want_w: bool,
    want_bias: bool,
) -> list[Tensor]:
    groups = ((want_x, (x,)), (want_w, (weight, style)), (want_bias, (bias,)))
    return [t.new_empty(t.shape) for want, tensors in groups if want for t in tensors]


def _differentiate(ctx: Any, dy: Tensor | None, *_: None) -> tuple:
    if dy is None:
        return (None,) * 6
    if torch.is_grad_enabled():
        return layer_through_reference(ctx, dy)
    want_x, want_weight, want_style, want_bias = ctx.needs_input_grad[:4]
    want_w = want_weight or want_style
    gradients = iter(mod_fc_bwd(dy, *ctx.saved_tensors, ctx.demodulate, want_x, want_w, want_bias))
    wanted = (want_x, want_w, want_w, want_bias)
    return *(next(gradients) if want else None for want in wanted), None, None


mod_fc.register_autograd(_differentiate, setup_context=save_layer)


# The encoding of coordinates


@custom_op("cips_fast::fourier_cpu", mutates_args=())
def fourier(
    coords: Tensor,
    freq: Tensor,
    phase: Tensor,
    at: Tensor | None,
    table: Tensor | None,
    align_corners: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Waves [N, C], or waves and the read of the table [N, 2C]: coords and at float32 [N, D|2], table [H, W, C]."""
    out = coords.new_empty(len(coords), freq.shape[0] * (1 if table is None else 2), dtype=dtype)

    def encode(rows: slice) -> None:
        encode_into(out[rows], coords[rows], freq, phase, None if at is None else at[rows], table, align_corners)

    with without_autocast(coords):
        starts = range(0, len(coords), POINTS_PER_PIECE)
        for _ in spread(encode, [slice(start, start + POINTS_PER_PIECE) for start in starts]):
            pass
    return out


@fourier.register_fake
def _(
    coords: Tensor,
    freq: Tensor,
    phase: Tensor,
    at: Tensor | None,
    table: Tensor | None,
    align_corners: bool,
    dtype: torch.dtype,
) -> Tensor:
    return coords.new_empty(coords.shape[0], freq.shape[0] * (1 if table is None else 2), dtype=dtype)


@custom_op("cips_fast::fourier_cpu_bwd", mutates_args=())
def fourier_bwd(
    dout: Tensor,
    coords: Tensor,
    freq: Tensor,
    phase: Tensor,
    at: Tensor | None,
    table: Tensor | None,
    align_corners: bool,
    want_coords: bool,
    want_waves: bool,
    want_table_coords: bool,
    want_table: bool,
) -> list[Tensor]:
    """The wanted ones of the gradients of coords, of freq and phase, of at and of table, float32."""
    C = freq.shape[0]
    gradients = []
    with without_autocast(coords):
        if want_coords or want_waves:
            dphases = phases(coords, freq, phase).cos_().mul_(dout[:, :C])
        if want_coords:
            gradients.append(dphases @ freq.float())
        if want_waves:
            gradients += [dphases.mT @ coords, dphases.sum(0)]
        dread = dout[:, C:].float()
        if want_table_coords:
            gradients.append(table_coords_bwd(dread, table, at, align_corners))
        if want_table:
            gradients.append(dread.new_zeros(table.shape))
            add_to_table(gradients[-1], dread, at, align_corners)
    return gradients


@fourier_bwd.register_fake
def _(
    dout: Tensor,
    coords: Tensor,
    freq: Tensor,
    phase: Tensor,
    at: Tensor | None,
    table: Tensor | None,
    align_corners: bool,
    want_coords: bool,
    want_waves: bool,
    want_table_coords: bool,
    want_table: bool,
) -> list[Tensor]:
    groups = (
        (want_coords, (coords,)),
        (want_waves, (freq, phase)),
        (want_table_coords, (at,)),
        (want_table, (table,)),
    )
    return [coords.new_empty(t.shape) for want, tensors in groups if want for t in tensors]


def _differentiate_fourier(ctx: Any, dout: Tensor) -> tuple:
    if torch.is_grad_enabled():
        return encoding_through_reference(ctx, dout)
    inputs = ctx.saved_tensors
    want_coords, want_freq, want_phase, want_table_coords, want_table = ctx.needs_input_grad[:5]
    wanted = (want_coords, want_freq or want_phase, want_table_coords, want_table)
    gradients = iter(fourier_bwd(dout, *inputs, ctx.align_corners, *wanted))
    asked = (wanted[0], wanted[1], *wanted[1:])  # the gradients of freq and phase are returned both or not at all
    return *(next(gradients).to(t.dtype) if want else None for t, want in zip(inputs, asked, strict=True)), None, None


fourier.register_autograd(_differentiate_fourier, setup_context=save_encoding)

"""The kernels of single layers and of the encoding as PyTorch operators: results, derivatives, and shapes of results.

Every operator is registered with torch.library, so that torch.compile and torch.export accept a model that uses it.
Kernels compute first derivatives. Second derivatives (`create_graph=True`) are computed through the reference formulas,
which can be differentiated any number of times.

Each operator has a function that runs, a function that only gives the shapes of the results (`register_fake`) and, if
it can be differentiated, its derivative. Triton is imported when an operator first runs. Programs that `torch.export`
saved refer to the operators' names and to the names of their arguments. Therefore the operators keep the argument name
`at` for what the rest of the package calls `table_coords`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .. import reference as ref
from ..kernels.device import dense_rows
from .autograd import (
    encoding_through_reference,
    layer_gain,
    layer_through_reference,
    save_encoding,
    save_layer,
    through_reference,
)

# Modulated weights


@custom_op("cips_fast::modulate", mutates_args=())
def modulate(weight: Tensor, style: Tensor, demodulate: bool) -> tuple[Tensor, Tensor]:
    """W' [B, O, I] in the weight's dtype, and d, float32 [B, O]."""
    from ..kernels.modulate import modulate_fwd

    return modulate_fwd(weight, style, demodulate=demodulate, gain=1.0, dtype=weight.dtype)


@modulate.register_fake
def _(weight: Tensor, style: Tensor, demodulate: bool) -> tuple[Tensor, Tensor]:
    (O, I), B = weight.shape, style.shape[0]
    return weight.new_empty(B, O, I), weight.new_empty(B, O, dtype=torch.float32)


@custom_op("cips_fast::modulate_bwd", mutates_args=())
def modulate_bwd(dw: Tensor, weight: Tensor, style: Tensor, d: Tensor, demodulate: bool) -> tuple[Tensor, Tensor]:
    """dW [O, I] and ds [B, I] from dW' [B, O, I]."""
    from ..kernels import modulate as kernels

    return kernels.modulate_bwd(dw[:, None], weight, style, d, demodulate=demodulate, gain=1.0)


@modulate_bwd.register_fake
def _(dw: Tensor, weight: Tensor, style: Tensor, d: Tensor, demodulate: bool) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), style.new_empty(style.shape)


def _save_modulate(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    weight, style, ctx.demodulate = inputs
    ctx.save_for_backward(weight, style, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate_modulate(ctx: Any, dw: Tensor | None, _: None) -> tuple:
    if dw is None:
        return None, None, None
    weight, style, d = ctx.saved_tensors
    if torch.is_grad_enabled():

        def formula(weight: Tensor, style: Tensor) -> Tensor:
            return ref.modulate_ref(weight, style, ctx.demodulate)

        return *through_reference(formula, [weight, style], dw), None
    return *modulate_bwd(dw, weight, style, d, ctx.demodulate), None


modulate.register_autograd(_differentiate_modulate, setup_context=_save_modulate)


# A layer


@custom_op("cips_fast::mod_fc", mutates_args=())
def mod_fc(
    x: Tensor, weight: Tensor, style: Tensor, bias: Tensor | None, demodulate: bool, lrelu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, P, O] and W' [B, O, I] in x's dtype, and d, float32 [B, O]."""
    from ..kernels.mod_fc import mod_fc_fwd
    from ..kernels.modulate import modulate_fwd

    w, d = modulate_fwd(weight, style, demodulate=demodulate, gain=layer_gain(lrelu), dtype=x.dtype)
    y, _ = mod_fc_fwd(x, w, bias, lrelu=lrelu, gain=layer_gain(lrelu))
    return y, w, d


@mod_fc.register_fake
def _(x: Tensor, weight: Tensor, style: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    (O, I), B = weight.shape, style.shape[0]
    return x.new_empty(B, x.shape[1], O), x.new_empty(B, O, I), x.new_empty(B, O, dtype=torch.float32)


@custom_op("cips_fast::mod_fc_act_bwd", mutates_args=())
def mod_fc_act_bwd(dy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient before the lrelu, [B, P, O], and its sum over samples and pixels, float32 [O]."""
    from ..kernels import mod_fc_bwd as kernels

    return kernels.mod_fc_act_bwd(dy, y)


@mod_fc_act_bwd.register_fake
def _(dy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return dy.new_empty(dy.shape), dy.new_empty(dy.shape[2], dtype=torch.float32)


@custom_op("cips_fast::mod_fc_dgrad", mutates_args=())
def mod_fc_dgrad(dz: Tensor, w: Tensor, shared: bool) -> Tensor:
    """Gradient of x, [B, P, I], or [1, P, I] if all images shared it."""
    from ..kernels import mod_fc_bwd as kernels

    return kernels.mod_fc_dgrad(dz, w, shared=shared)[0]


@mod_fc_dgrad.register_fake
def _(dz: Tensor, w: Tensor, shared: bool) -> Tensor:
    return dz.new_empty(1 if shared else w.shape[0], dz.shape[1], w.shape[2])


@custom_op("cips_fast::mod_fc_wgrad", mutates_args=())
def mod_fc_wgrad(
    dz: Tensor, x: Tensor, weight: Tensor, style: Tensor, d: Tensor, demodulate: bool, lrelu: bool
) -> tuple[Tensor, Tensor]:
    """dW [O, I] and ds [B, I]."""
    from ..kernels import mod_fc_bwd as kernels
    from ..kernels.modulate import modulate_bwd

    dw = kernels.mod_fc_wgrad(dz, x)
    return modulate_bwd(dw, weight, style, d, demodulate=demodulate, gain=layer_gain(lrelu))


@mod_fc_wgrad.register_fake
def _(dz: Tensor, x: Tensor, weight: Tensor, style: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), style.new_empty(style.shape)


def _differentiate_mod_fc(ctx: Any, dy: Tensor | None, *_: None) -> tuple:
    if dy is None:
        return (None,) * 6
    if torch.is_grad_enabled():
        return layer_through_reference(ctx, dy)
    x, weight, style, bias, y, w, d = ctx.saved_tensors
    needs_x, needs_weight, needs_style, needs_bias = ctx.needs_input_grad[:4]
    dx = dweight = dstyle = dbias = None
    if ctx.lrelu:
        dz, sums = mod_fc_act_bwd(dy, y)
    else:
        dz, sums = dense_rows(dy), dy.sum((0, 1), dtype=torch.float32) if needs_bias else None
    if needs_bias:
        dbias = (layer_gain(ctx.lrelu) * sums).to(bias.dtype)
    if needs_x:
        dx = mod_fc_dgrad(dz, w, x.shape[0] != w.shape[0])
    if needs_weight or needs_style:
        dweight, dstyle = mod_fc_wgrad(dz, x, weight, style, d, ctx.demodulate, ctx.lrelu)
    return dx, dweight, dstyle, dbias, None, None


mod_fc.register_autograd(_differentiate_mod_fc, setup_context=save_layer)


# A layer with pixel styles


@custom_op("cips_fast::mixed_fc", mutates_args=())
def mixed_fc(
    x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor | None, mix: Tensor, demodulate: bool, lrelu: bool
) -> Tensor:
    """y [B, P, O] in x's dtype; it has no derivative. See `pixel_styles.mixed_fc`."""
    from ..kernels.mod_fc_mixed import mod_fc_mixed

    return mod_fc_mixed(x, weight, styles, bias, mix, demodulate=demodulate, lrelu=lrelu, gain=layer_gain(lrelu))


@mixed_fc.register_fake
def _(x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor | None, mix: Tensor, *_: Any) -> Tensor:
    return x.new_empty(*mix.shape[:2], weight.shape[0])


# The encoding of coordinates


@custom_op("cips_fast::fourier", mutates_args=())
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
    from ..kernels.fourier import fourier_fwd

    dense = [None if t is None else t.contiguous() for t in (coords, freq, phase, at, table)]
    return fourier_fwd(*dense, align_corners=align_corners, dtype=dtype)


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


@custom_op("cips_fast::fourier_bwd_freq", mutates_args=())
def fourier_bwd_freq(dwaves: Tensor, coords: Tensor, freq: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    """dF [C, D] and dφ [C], float32."""
    from ..kernels import fourier as kernels

    return kernels.fourier_bwd_freq(dense_rows(dwaves), coords.contiguous(), freq.contiguous(), phase.contiguous())


@fourier_bwd_freq.register_fake
def _(dwaves: Tensor, coords: Tensor, freq: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
    return freq.new_empty(freq.shape, dtype=torch.float32), phase.new_empty(phase.shape, dtype=torch.float32)


@custom_op("cips_fast::fourier_bwd_coords", mutates_args=())
def fourier_bwd_coords(dwaves: Tensor, coords: Tensor, freq: Tensor, phase: Tensor) -> Tensor:
    """Gradient of the coordinates through the waves, float32 [N, D]."""
    from ..kernels import fourier as kernels

    return kernels.fourier_bwd_coords(dense_rows(dwaves), coords.contiguous(), freq.contiguous(), phase.contiguous())


@fourier_bwd_coords.register_fake
def _(dwaves: Tensor, coords: Tensor, freq: Tensor, phase: Tensor) -> Tensor:
    return coords.new_empty(coords.shape)


@custom_op("cips_fast::embedding_bwd_table", mutates_args=())
def embedding_bwd_table(dread: Tensor, at: Tensor, table: Tensor, align_corners: bool) -> Tensor:
    """Gradient of the table, float32 [H, W, C]."""
    from ..kernels import embedding as kernels

    return kernels.embedding_bwd_table(dense_rows(dread), at.contiguous(), table.shape, align_corners=align_corners)


@embedding_bwd_table.register_fake
def _(dread: Tensor, at: Tensor, table: Tensor, align_corners: bool) -> Tensor:
    return table.new_empty(table.shape, dtype=torch.float32)


@custom_op("cips_fast::embedding_bwd_at", mutates_args=())
def embedding_bwd_coords(dread: Tensor, at: Tensor, table: Tensor, align_corners: bool) -> Tensor:
    """Gradient of the points where the table was read, float32 [N, 2]."""
    from ..kernels import embedding as kernels

    points, table = at.contiguous(), table.contiguous()
    return kernels.embedding_bwd_coords(dense_rows(dread), points, table, align_corners=align_corners)


@embedding_bwd_coords.register_fake
def _(dread: Tensor, at: Tensor, table: Tensor, align_corners: bool) -> Tensor:
    return at.new_empty(at.shape)


def _differentiate_fourier(ctx: Any, dout: Tensor) -> tuple:
    if torch.is_grad_enabled():
        return encoding_through_reference(ctx, dout)
    coords, freq, phase, at, table = ctx.saved_tensors
    needs_coords, needs_freq, needs_phase, needs_table_coords, needs_table = ctx.needs_input_grad[:5]
    dwaves, dread = dout[:, : freq.shape[0]], dout[:, freq.shape[0] :]
    dcoords = dfreq = dphase = dtable_coords = dtable = None
    if needs_coords:
        dcoords = fourier_bwd_coords(dwaves, coords, freq, phase)
    if needs_freq or needs_phase:
        dfreq, dphase = fourier_bwd_freq(dwaves, coords, freq, phase)
        dfreq, dphase = dfreq.to(freq.dtype), dphase.to(phase.dtype)
    if needs_table_coords:
        dtable_coords = embedding_bwd_coords(dread, at, table, ctx.align_corners)
    if needs_table:
        dtable = embedding_bwd_table(dread, at, table, ctx.align_corners).to(table.dtype)
    return dcoords, dfreq, dphase, dtable_coords, dtable, None, None


fourier.register_autograd(_differentiate_fourier, setup_context=save_encoding)

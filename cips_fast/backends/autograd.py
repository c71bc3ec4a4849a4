"""What the operators of all backends share for autograd: saved tensors, and derivatives through the reference formulas.

A backend computes first derivatives. Second derivatives (`create_graph=True`) are computed through
`cips_fast.reference`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import reference as ref
from .autocast import without_autocast


def layer_gain(lrelu: bool) -> float:
    """Gain of the activation: √2 for lrelu, else 1."""
    return ref.LRELU_GAIN if lrelu else 1.0


def through_reference(formula: Callable[..., Tensor], inputs: list[Tensor | None], upstream: Tensor) -> list:
    """Gradients of a formula as differentiable expressions; None for an input that needs no gradient."""
    # Views, so that a tensor that is passed twice is two inputs.
    inputs = [None if t is None else t.view_as(t) for t in inputs]
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    with torch.enable_grad(), without_autocast(upstream):
        gradients = iter(torch.autograd.grad(formula(*inputs), wanted, upstream, create_graph=True, allow_unused=True))
    return [next(gradients) if t is not None and t.requires_grad else None for t in inputs]


def save_layer(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Save the inputs of a layer's operator, its outputs other than y, and y if it was activated."""
    x, weight, style, bias, ctx.demodulate, ctx.lrelu = inputs
    ctx.save_for_backward(x, weight, style, bias, output[0] if ctx.lrelu else None, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def layer_through_reference(ctx: Any, dy: Tensor) -> tuple:
    """Gradients of the arguments of a layer's operator as differentiable expressions."""
    activation = "lrelu" if ctx.lrelu else "linear"

    def formula(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor | None) -> Tensor:
        w = ref.modulate_ref(weight.float(), style.float(), ctx.demodulate).to(x.dtype)
        z = x @ w.mT
        return ref.activate_ref(z if bias is None else z + bias.to(z.dtype), activation)

    return *through_reference(formula, list(ctx.saved_tensors[:4]), dy), None, None


def save_encoding(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Save the inputs of an operator of the encoding."""
    *tensors, ctx.align_corners, ctx.dtype = inputs
    ctx.save_for_backward(*tensors)


def encoding_through_reference(ctx: Any, dout: Tensor) -> tuple:
    """Gradients of the arguments of the encoding's operator as differentiable expressions."""

    def formula(
        coords: Tensor, freq: Tensor, phase: Tensor, table_coords: Tensor | None, table: Tensor | None
    ) -> Tensor:
        waves = ref.fourier_encode_ref(coords, freq.float(), phase.float())
        if table is None:
            return waves.to(ctx.dtype)
        read = ref.embed_coords_ref(table_coords, table.float(), ctx.align_corners)
        return torch.cat([waves, read], -1).to(ctx.dtype)

    return *through_reference(formula, list(ctx.saved_tensors), dout), None, None

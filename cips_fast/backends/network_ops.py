"""A whole network as PyTorch operators: `render` for inference, `synthesis` with its backward pass for training.

`backend` is `triton`, the kernels, or `cpu`, cpu_network.py. As in triton_ops.py: registered with torch.library, first
derivatives by these, second ones through the reference formulas. `tensors` are those of a `Network` of so many layers,
in its order. Triton is imported when an operator first runs it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .. import reference as ref
from ..kernels.network import Network
from . import cpu_network
from .autocast import without_autocast
from .autograd import through_reference


@custom_op("cips_fast::render", mutates_args=())
def render(
    coords: Tensor,
    at: Tensor,
    tensors: list[Tensor],
    layers: int,
    residual: bool,
    align_corners: bool,
    dtype: torch.dtype,
    backend: str,
    inference: str,
) -> Tensor:
    """Colours, float32 [B, P, 3]: coords and at float32 [B|1, P, D|2], `inference` as in `planner.render`."""
    network = _dense_network(tensors, layers, residual, align_corners)
    if backend == "cpu":
        with without_autocast(coords):
            return cpu_network.render(network, coords, at, dtype)
    from ..kernels import dispatch

    return dispatch.render(network, coords, at, dtype=dtype, inference=inference)


@render.register_fake
def _(coords: Tensor, at: Tensor, tensors: list[Tensor], layers: int, *_: Any) -> Tensor:
    return coords.new_empty(_batch(tensors, layers), coords.shape[1], 3, dtype=torch.float32)


@custom_op("cips_fast::synthesis", mutates_args=())
def synthesis(
    coords: Tensor,
    at: Tensor,
    tensors: list[Tensor],
    layers: int,
    residual: bool,
    align_corners: bool,
    dtype: torch.dtype,
    backend: str,
    pixel_chunk: int,
) -> tuple[Tensor, list[Tensor]]:
    """Colours, float32 [B, P, 3], and what the backward pass needs, activations too unless `pixel_chunk` > 0."""
    network = _dense_network(tensors, layers, residual, align_corners)
    if backend == "cpu":
        with without_autocast(coords):
            return cpu_network.forward(network, coords, at, dtype, pixel_chunk)
    from ..kernels import layered

    points, weights = layered.Points.of(coords, at), layered.modulate(network, dtype)
    rgb = coords.new_empty(network.batch, coords.shape[1], 3, dtype=torch.float32)
    if pixel_chunk:
        layered.forward_in_chunks(network, weights, points, rgb)
        return rgb, weights.tensors()
    activations = layered.forward(network, weights, layered.encode(network, points, dtype), rgb)
    return rgb, [*weights.tensors(), *activations.tensors()]


@synthesis.register_fake
def _(
    coords: Tensor,
    at: Tensor,
    tensors: list[Tensor],
    layers: int,
    residual: bool,
    align_corners: bool,
    dtype: torch.dtype,
    backend: str,
    pixel_chunk: int,
) -> tuple[Tensor, list[Tensor]]:
    network = Network.from_tensors(tensors, layers, residual, align_corners)
    B, P = network.batch, coords.shape[1]
    rgb = coords.new_empty(B, P, 3, dtype=torch.float32)
    if backend == "cpu":
        return rgb, cpu_network.saved_like(network, coords, dtype, pixel_chunk)
    from ..kernels import layered

    saved = []
    for weights in (network.weights, network.tap_weights):
        saved += [coords.new_empty(B, *weight.shape, dtype=dtype) for weight in weights]
        saved += [coords.new_empty(B, weight.shape[0], dtype=torch.float32) for weight in weights]
    saved += [coords.new_empty(B, *weight.shape, dtype=dtype) for weight in network.shortcuts]
    if not pixel_chunk:
        x0 = coords.new_empty(coords.shape[0], P, 2 * network.freq.shape[0], dtype=dtype)
        saved += layered.Activations.empty(network, x0).tensors()
    return rgb, saved


@custom_op("cips_fast::synthesis_bwd", mutates_args=())
def synthesis_bwd(
    drgb: Tensor,
    coords: Tensor,
    at: Tensor,
    tensors: list[Tensor],
    saved: list[Tensor],
    layers: int,
    residual: bool,
    align_corners: bool,
    dtype: torch.dtype,
    backend: str,
    pixel_chunk: int,
    want_coords: bool,
) -> list[Tensor]:
    """Gradients of `tensors`, and those of `coords` and `at` if wanted."""
    network = _dense_network(tensors, layers, residual, align_corners)
    if backend == "cpu":
        with without_autocast(coords):
            of_network, of_points = cpu_network.backward(
                network, drgb, coords, at, saved, dtype, pixel_chunk, want_points=want_coords
            )
        return [*of_network.tensors(), *(of_points or ())]
    from ..kernels import layered

    weights, kept = layered.Weights.from_tensors(saved, network)
    points = layered.Points.of(coords, at)
    gradients = layered.Gradients(network, weights, points, want_coords=want_coords)
    if kept:
        gradients.add(0, coords.shape[1], layered.Activations.from_tensors(kept, network), drgb)
    else:
        gradients.recompute(pixel_chunk, drgb, dtype)
    of_points = [gradients.coords, gradients.at] if want_coords else []
    return [*gradients.of_network(drgb).tensors(), *of_points]


@synthesis_bwd.register_fake
def _(drgb: Tensor, coords: Tensor, at: Tensor, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (*tensors, *((coords, at) if rest[-1] else ()))]


def _save_synthesis(ctx: Any, inputs: tuple, output: tuple[Tensor, list[Tensor]]) -> None:
    coords, at, tensors, *ctx.options = inputs
    ctx.save_for_backward(coords, at, *tensors, *output[1])
    ctx.count = len(tensors)
    ctx.mark_non_differentiable(*output[1])
    ctx.set_materialize_grads(False)


def _differentiate_synthesis(ctx: Any, drgb: Tensor | None, _: Any) -> tuple:
    if drgb is None:
        return None, None, [None] * ctx.count, *[None] * len(ctx.options)
    coords, at, *rest = ctx.saved_tensors
    tensors, saved = rest[: ctx.count], rest[ctx.count :]
    layers, residual, align_corners, dtype, *_ = ctx.options
    if torch.is_grad_enabled():

        def formula(coords: Tensor, at: Tensor, *tensors: Tensor) -> Tensor:
            network = Network.from_tensors(tensors, layers, residual, align_corners)
            return ref.synthesis_ref(network, coords, at, dtype=dtype).to(drgb.dtype)

        dcoords, dat, *gradients = through_reference(formula, [coords, at, *tensors], drgb)
    else:
        want_coords = any(ctx.needs_input_grad[:2])
        gradients = synthesis_bwd(drgb, coords, at, tensors, saved, *ctx.options, want_coords)
        dcoords, dat = gradients[ctx.count :] if want_coords else (None, None)
    return dcoords, dat, list(gradients[: ctx.count]), *[None] * len(ctx.options)


synthesis.register_autograd(_differentiate_synthesis, setup_context=_save_synthesis)


def _dense_network(tensors: list[Tensor], layers: int, residual: bool, align_corners: bool) -> Network:
    """The network as kernels take it."""
    return Network.from_tensors([t.contiguous() for t in tensors], layers, residual, align_corners)


def _batch(tensors: list[Tensor], layers: int) -> int:
    return tensors[3 + 2 * layers].shape[0]  # the first style's

"""A whole network as PyTorch operators: `infer` without gradients, and `synthesis` with its backward pass.

`backend` is `triton` (triton_network.py) or `cpu` (cpu_network.py). `tensors` are those of a `Network` of `layers`
layers, in the order of `Network.tensors`. As in triton_ops.py, the operators are registered with torch.library, they
compute first derivatives, and second derivatives are computed through the reference formulas.

Programs that `torch.export` saved refer to the operators' names and to the names of their arguments. Therefore `infer`
is registered as `cips_fast::render`, and the argument `at` keeps its name; the rest of the package calls it
`table_coords`.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from .. import reference as ref
from ..kernels.network import Network
from . import cpu_network
from .autocast import without_autocast
from .autograd import through_reference


def _implementation(backend: str) -> ModuleType:
    """The module with the functions `infer`, `forward`, `saved_like` and `backward` of a backend."""
    if backend == "cpu":
        return cpu_network
    from . import triton_network  # here, because it imports Triton

    return triton_network


@custom_op("cips_fast::render", mutates_args=())
def infer(
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
    """Colours, float32 [B, P, 3]: coords and at float32 [B|1, P, D|2], `inference` as in `kernels.dispatch.infer`."""
    network = _dense_network(tensors, layers, residual, align_corners)
    with without_autocast(coords):
        return _implementation(backend).infer(network, coords, at, dtype, inference)


@infer.register_fake
def _(
    coords: Tensor, at: Tensor, tensors: list[Tensor], layers: int, residual: bool, align_corners: bool, *_: Any
) -> Tensor:
    network = Network.from_tensors(tensors, layers, residual, align_corners)
    return coords.new_empty(network.batch, coords.shape[1], 3, dtype=torch.float32)


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
    """Colours, float32 [B, P, 3], and what the backward pass needs, with activations unless `pixel_chunk` > 0."""
    network = _dense_network(tensors, layers, residual, align_corners)
    with without_autocast(coords):
        return _implementation(backend).forward(network, coords, at, dtype, pixel_chunk)


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
    rgb = coords.new_empty(network.batch, coords.shape[1], 3, dtype=torch.float32)
    return rgb, _implementation(backend).saved_like(network, coords, dtype, pixel_chunk)


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
    """Gradients of `tensors` and, if wanted, of `coords` and `at`."""
    network = _dense_network(tensors, layers, residual, align_corners)
    with without_autocast(coords):
        of_network, of_points = _implementation(backend).backward(
            network, drgb, coords, at, saved, dtype, pixel_chunk, want_points=want_coords
        )
    return [*of_network.tensors(), *(of_points or ())]


@synthesis_bwd.register_fake
def _(drgb: Tensor, coords: Tensor, at: Tensor, tensors: list[Tensor], *rest: Any) -> list[Tensor]:
    want_coords = rest[-1]
    return [t.new_empty(t.shape) for t in (*tensors, *((coords, at) if want_coords else ()))]


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

        def formula(coords: Tensor, table_coords: Tensor, *tensors: Tensor) -> Tensor:
            network = Network.from_tensors(tensors, layers, residual, align_corners)
            return ref.synthesis_ref(network, coords, table_coords, dtype=dtype).to(drgb.dtype)

        dcoords, dtable_coords, *gradients = through_reference(formula, [coords, at, *tensors], drgb)
    else:
        want_coords = any(ctx.needs_input_grad[:2])
        gradients = synthesis_bwd(drgb, coords, at, tensors, saved, *ctx.options, want_coords)
        dcoords, dtable_coords = gradients[ctx.count :] if want_coords else (None, None)
    return dcoords, dtable_coords, list(gradients[: ctx.count]), *[None] * len(ctx.options)


synthesis.register_autograd(_differentiate_synthesis, setup_context=_save_synthesis)


def _dense_network(tensors: list[Tensor], layers: int, residual: bool, align_corners: bool) -> Network:
    """The network with contiguous tensors, as the backends take it."""
    return Network.from_tensors([t.contiguous() for t in tensors], layers, residual, align_corners)

"""A whole network by the kernels, with the same four functions as cpu_network.py. Importing it needs Triton."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels import dispatch, layered
from ..kernels.network import Network


def infer(network: Network, coords: Tensor, table_coords: Tensor, dtype: torch.dtype, inference: str) -> Tensor:
    """Colours at coordinates, without gradients; see `kernels.dispatch.infer`."""
    return dispatch.infer(network, coords, table_coords, dtype=dtype, inference=inference)


def forward(
    network: Network, coords: Tensor, table_coords: Tensor, dtype: torch.dtype, pixel_chunk: int
) -> tuple[Tensor, list[Tensor]]:
    """Colours, float32 [B, P, 3], and what `backward` needs: weights, and activations unless `pixel_chunk` > 0."""
    points, weights = layered.Points.of(coords, table_coords), layered.modulate(network, dtype)
    rgb = coords.new_empty(network.batch, coords.shape[1], 3, dtype=torch.float32)
    if pixel_chunk:
        layered.forward_in_chunks(network, weights, points, rgb)
        return rgb, weights.tensors()
    activations = layered.forward(network, weights, layered.encode(network, points, dtype), rgb)
    return rgb, [*weights.tensors(), *activations.tensors()]


def saved_like(network: Network, coords: Tensor, dtype: torch.dtype, pixel_chunk: int) -> list[Tensor]:
    """Uninitialised tensors of the shapes and dtypes that `forward` saves for the backward pass."""
    B, P = network.batch, coords.shape[1]
    saved = []
    for weights in (network.weights, network.tap_weights):
        saved += [coords.new_empty(B, *weight.shape, dtype=dtype) for weight in weights]
        saved += [coords.new_empty(B, weight.shape[0], dtype=torch.float32) for weight in weights]
    saved += [coords.new_empty(B, *weight.shape, dtype=dtype) for weight in network.shortcuts]
    if not pixel_chunk:
        x0 = coords.new_empty(coords.shape[0], P, 2 * network.freq.shape[0], dtype=dtype)
        saved += layered.Activations.empty(network, x0).tensors()
    return saved


def backward(
    network: Network,
    drgb: Tensor,
    coords: Tensor,
    table_coords: Tensor,
    saved: Sequence[Tensor],
    dtype: torch.dtype,
    pixel_chunk: int,
    *,
    want_points: bool,
) -> tuple[Network, tuple[Tensor, Tensor] | None]:
    """Gradients of a network and, if wanted, of coords and table_coords: drgb [B, P, 3].

    With `pixel_chunk` N no activations were saved; those of at most N pixels are recomputed at a time.
    """
    weights, kept = layered.Weights.from_tensors(saved, network)
    points = layered.Points.of(coords, table_coords)
    gradients = layered.Gradients(network, weights, points, want_coords=want_points)
    if kept:
        gradients.add(0, coords.shape[1], layered.Activations.from_tensors(kept, network), drgb)
    else:
        gradients.recompute(pixel_chunk, drgb, dtype)
    of_points = (gradients.coords, gradients.table_coords) if want_points else None
    return gradients.of_network(drgb), of_points

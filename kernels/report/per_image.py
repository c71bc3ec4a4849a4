"""Launches, operations and bytes of one whole image, for each way to compute it, counted by the rules of `ledger`.

The network is the paper's network for a size: without residual blocks, 512 channels, in bfloat16. The image is one, at
every pixel of the native grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import layered, stack
from ..chips import Chip
from ..device import standing_in
from . import published_formulation
from .ledger import Launch, Ledger, floor_of, found_in_cache, launches_of
from .workload import meta, paper_network

SIZES = (256, 512, 1024)
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Total:
    """One image, forward or backward, on a chip."""

    size: int  # pixels of a side
    way: str  # to compute it: `published`, `layered` or `stack`
    direction: str  # `forward` or `backward`
    chip: str
    launches: int
    flop: int  # in matrix products
    bytes: int  # read and written, every operand and result of a launch once
    cached: int  # those that the last cache holds from earlier launches, see `ledger.found_in_cache`
    floor: float  # seconds, launches one after another, all bytes from and to memory
    floor_cached: float  # seconds, the same without the cached bytes


def pixels(size: int) -> Tensor:
    """Coordinates of the native grid, without memory: [1, size², 2]."""
    return meta(1, size * size, 2)


def published_forward(size: int, architecture: str) -> list[Launch]:
    """Launches of the published formulation in eager PyTorch."""
    network = paper_network(size)
    return launches_of(lambda: published_formulation.synthesis(network, pixels(size), dtype=DTYPE), architecture)


def published_backward(size: int, architecture: str) -> list[Launch]:
    """Launches of its gradients for all parameters, by autograd."""
    network = paper_network(size)
    for t in network.tensors():
        t.requires_grad_()
    rgb = published_formulation.synthesis(network, pixels(size), dtype=DTYPE)
    upstream = torch.empty_like(rgb)
    return launches_of(lambda: torch.autograd.grad(rgb, network.tensors(), upstream), architecture)


def layered_forward(size: int, architecture: str) -> list[Launch]:
    """Launches of inference layer by layer, a chunk of pixels at a time."""
    network = paper_network(size)
    return launches_of(lambda: layered.infer(network, pixels(size), dtype=DTYPE), architecture)


def layered_backward(size: int, architecture: str) -> list[Launch]:
    """Launches of its gradients for all parameters, with all activations kept."""
    network, coords = paper_network(size), pixels(size)
    drgb = meta(1, size * size, 3)
    points = layered.Points(coords, coords)
    with standing_in(Ledger(architecture)):
        weights = layered.modulate(network, DTYPE)
        activations = layered.forward(network, weights, layered.encode(network, points, DTYPE), torch.empty_like(drgb))

    def backward() -> None:
        gradients = layered.Gradients(network, weights, points, want_coords=False)
        gradients.add(0, size * size, activations, drgb)
        gradients.of_network(drgb)

    return launches_of(backward, architecture)


def stack_forward(size: int, architecture: str) -> list[Launch]:
    """Launches of inference with all layers in one launch."""
    network = paper_network(size)
    return launches_of(lambda: stack.infer(network, pixels(size), dtype=DTYPE), architecture)


# By way and direction: a function of the size and the architecture that returns the launches.
PASSES: dict[tuple[str, str], Callable[[int, str], list[Launch]]] = {
    ("published", "forward"): published_forward,
    ("published", "backward"): published_backward,
    ("layered", "forward"): layered_forward,
    ("layered", "backward"): layered_backward,
    ("stack", "forward"): stack_forward,
}


def total(way: str, direction: str, size: int, chip: Chip) -> Total:
    """The totals of an image on a chip; (way, direction) is a key of PASSES."""
    launches = PASSES[way, direction](size, chip.architecture)
    cached = found_in_cache(launches, chip.l2)
    return Total(
        size=size,
        way=way,
        direction=direction,
        chip=chip.name,
        launches=len(launches),
        flop=sum(launch.flop for launch in launches),
        bytes=sum(launch.moved for launch in launches),
        cached=sum(cached),
        floor=floor_of(launches, chip),
        floor_cached=floor_of(launches, chip, cached),
    )

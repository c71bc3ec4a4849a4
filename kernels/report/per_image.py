"""A whole image's launches, operations and bytes, by ways of computing it, all counted by the rules of `ledger`.

The network is the paper's for a size: skips, 512 wide, in bfloat16, one image, every pixel of the native grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import layered, stack
from ..chips import Chip
from ..device import standing_in
from . import published_formulation
from .ledger import Ledger, Step, floor_of, found_in_cache, launches_of
from .workload import meta, paper_network

SIZES = (256, 512, 1024)
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Total:
    """One image, forward or backward, on a chip."""

    size: int
    way: str  # of computing it: `published`, `layered` or `stack`
    direction: str
    chip: str
    launches: int
    flop: int  # in matrix products
    bytes: int  # every operand and result of a launch once
    cached: int  # of them what earlier launches left in the last cache, see `ledger.found_in_cache`
    floor: float  # seconds, launches one after another, all bytes from and to memory
    floor_cached: float  # seconds, without what is cached


def pixels(size: int) -> Tensor:
    """Coordinates of the native grid, without memory: [1, size², 2]."""
    return meta(1, size * size, 2)


def published_forward(size: int, architecture: str) -> list[Step]:
    """Launches of the published formulation in eager PyTorch."""
    network = paper_network(size)
    return launches_of(lambda: published_formulation.render(network, pixels(size), dtype=DTYPE), architecture)


def published_backward(size: int, architecture: str) -> list[Step]:
    """Launches of its gradients by autograd, of all parameters."""
    network = paper_network(size)
    for t in network.tensors():
        t.requires_grad_()
    rgb = published_formulation.render(network, pixels(size), dtype=DTYPE)
    upstream = torch.empty_like(rgb)
    return launches_of(lambda: torch.autograd.grad(rgb, network.tensors(), upstream), architecture)


def layered_forward(size: int, architecture: str) -> list[Step]:
    """Launches of rendering layer by layer, a chunk of pixels at a time."""
    network = paper_network(size)
    return launches_of(lambda: layered.render(network, pixels(size), dtype=DTYPE), architecture)


def layered_backward(size: int, architecture: str) -> list[Step]:
    """Launches of its gradients, with all activations kept, of all parameters."""
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


def stack_forward(size: int, architecture: str) -> list[Step]:
    """Launches of rendering with all layers in one."""
    network = paper_network(size)
    return launches_of(lambda: stack.render(network, pixels(size), dtype=DTYPE), architecture)


Recipe = Callable[[int, str], list[Step]]
WAYS: dict[tuple[str, str], Recipe] = {
    ("published", "forward"): published_forward,
    ("published", "backward"): published_backward,
    ("layered", "forward"): layered_forward,
    ("layered", "backward"): layered_backward,
    ("stack", "forward"): stack_forward,
}


def total(way: str, direction: str, size: int, chip: Chip) -> Total:
    """What an image costs on a chip, computed in one of WAYS."""
    steps = WAYS[way, direction](size, chip.architecture)
    cached = found_in_cache(steps, chip.l2)
    return Total(
        size=size,
        way=way,
        direction=direction,
        chip=chip.name,
        launches=len(steps),
        flop=sum(step.flop for step in steps),
        bytes=sum(step.moved for step in steps),
        cached=sum(cached),
        floor=floor_of(steps, chip),
        floor_cached=floor_of(steps, chip, cached),
    )

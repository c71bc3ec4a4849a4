"""What kernels that run a whole network read: its layers as a list of steps in memory, and its weights in one piece.

B images   I, O channels of a layer
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import Argument
from .modulate import modulate_fwd
from .network import Network

GAIN = 2**0.5
NONE = -1


@dataclass(frozen=True)
class Step:
    """One product for a tile of pixels: act(x W'ᵀ + β), or (that + around)/√2. Offsets count elements; -1 is none.

    Regions are places for a tile's activations. A shortcut is a step without a bias, and is not activated.
    """

    inputs: int
    outputs: int
    weight: int  # in a sample's weights
    bias: int  # among the biases, which begin with the colours' [3]
    tap: int  # of an RGB tap [3, O], in a sample's weights
    source: int  # region
    target: int  # region
    around: int  # region that is added to the result


# Where a step's fields stand in its row.
FIELDS = tl.constexpr(8)
INPUTS = tl.constexpr(0)
OUTPUTS = tl.constexpr(1)
WEIGHT = tl.constexpr(2)
BIAS = tl.constexpr(3)
TAP = tl.constexpr(4)
SOURCE = tl.constexpr(5)
TARGET = tl.constexpr(6)
AROUND = tl.constexpr(7)


@triton.jit
def field(steps_ptr, step, place: tl.constexpr):
    return tl.load(steps_ptr + step * FIELDS + place)


@triton.jit
def width(steps_ptr, step, place: tl.constexpr, ALIGNED: tl.constexpr):
    """A number of channels or an offset, which the compiler may take for a multiple of 16 where all of them are."""
    value = tl.load(steps_ptr + step * FIELDS + place)
    if ALIGNED:
        value = tl.multiple_of(value, 16)
    return value


@dataclass(frozen=True)
class Plan:
    """The steps of a network, from the first layer on, and what they need."""

    steps: tuple[Step, ...]
    weights: int  # elements of a sample's weights
    regions: int

    @property
    def inputs(self) -> list[int]:
        """Channels that each step reads."""
        return [step.inputs for step in self.steps]

    @property
    def outputs(self) -> list[int]:
        """Channels that each step writes."""
        return [step.outputs for step in self.steps]

    @property
    def aligned(self) -> bool:
        """Whether all widths, and with them the places of all weights but the taps', are multiples of 16."""
        return all(n % 16 == 0 for n in self.inputs + self.outputs)


def plan_of(network: Network) -> Plan:
    """The steps that a network takes."""
    inputs = tuple(weight.shape[1] for weight in network.weights)
    return _plan(inputs, tuple(network.widths), tuple(network.tapped), network.residual)


@lru_cache
def _plan(inputs: tuple[int, ...], widths: tuple[int, ...], tapped: tuple[int, ...], residual: bool) -> Plan:
    """Layers go back and forth between two regions; a residual block is added to its input where that lies.

    A block that changes the width has its shortcut in a third region, which then takes the place of its input's.
    """
    weights, biases = 0, 3
    steps: list[Step] = []

    def add(layer: int, source: int, target: int, *, around: int = NONE) -> None:
        nonlocal weights, biases
        tap = layer in tapped
        tap_place = weights + widths[layer] * inputs[layer] if tap else NONE
        steps.append(Step(inputs[layer], widths[layer], weights, biases, tap_place, source, target, around))
        weights += widths[layer] * (inputs[layer] + 3 * tap)
        biases += widths[layer]

    def add_shortcut(first: int, last: int, source: int, target: int) -> None:
        nonlocal weights
        steps.append(Step(inputs[first], widths[last], weights, NONE, NONE, source, target, NONE))
        weights += widths[last] * inputs[first]

    add(0, 0, 1)
    here, free = 1, [0, 2]
    for first in range(1, len(widths), 2):
        middle, spare = free
        last = first + 1
        add(first, here, middle)
        if residual and inputs[first] != widths[last]:
            add_shortcut(first, last, here, spare)
            here, free = spare, [middle, here]
        add(last, middle, here, around=here if residual else NONE)
    return Plan(tuple(steps), weights, 1 + max(step.target for step in steps))


def packed(network: Network, plan: Plan, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A sample's weights one after another [B, weights]; and all biases, that of the colours first, float32."""
    B = network.batch
    w = torch.empty(B, plan.weights, dtype=dtype, device=network.freq.device)

    def part(place: int, outputs: int, inputs: int) -> Tensor:
        return w[:, place : place + outputs * inputs].view(B, outputs, inputs)

    layers = iter(zip(network.weights, network.styles, strict=True))
    taps = iter(zip(network.tap_weights, network.tap_styles, strict=True))
    shortcuts = iter(network.shortcuts)
    for step in plan.steps:
        target = part(step.weight, step.outputs, step.inputs)
        if step.bias == NONE:
            target.copy_(next(shortcuts))
        else:
            modulate_fwd(*next(layers), demodulate=True, gain=GAIN, dtype=dtype, w=target)
        if step.tap != NONE:
            target = part(step.tap, 3, step.outputs)
            modulate_fwd(*next(taps), demodulate=False, gain=1.0, dtype=dtype, w=target)
    colours = torch.stack([bias.float() for bias in network.tap_biases]).sum(0)
    biases = torch.cat([colours, *(bias.float() for bias in network.biases)])
    biases[3:] *= GAIN
    return w, biases


def arguments(
    network: Network, plan: Plan, coords: Tensor, at: Tensor | None, dtype: torch.dtype
) -> dict[str, Argument]:
    """What such a kernel takes, by name; `rgb_ptr`, float32 [B, P, 3], is where it writes the colours."""
    B, P, device = network.batch, coords.shape[1], coords.device
    at = coords if at is None else at
    w, biases = packed(network, plan, dtype)
    return {
        "coords_ptr": coords.contiguous(),
        "at_ptr": at.contiguous(),
        "freq_ptr": network.freq.contiguous(),
        "phase_ptr": network.phase.contiguous(),
        "table_ptr": network.table.contiguous(),
        "steps_ptr": in_memory(plan.steps, device),
        "w_ptr": w,
        "bias_ptr": biases,
        "rgb_ptr": torch.empty(B, P, 3, dtype=torch.float32, device=device),
        "P": P,
        "C": network.freq.shape[0],
        "H": network.table.shape[0],
        "W": network.table.shape[1],
        "steps": len(plan.steps),
        "coords_stride_b": P if coords.shape[0] == B else 0,  # in points
        "at_stride_b": P if at.shape[0] == B else 0,
        "w_stride_b": w.stride(0),
    }


@lru_cache
def in_memory(steps: Sequence[Step], device: torch.device) -> Tensor:
    """The steps as a kernel reads them, int32 [steps, FIELDS]."""
    return torch.tensor([astuple(step) for step in steps], dtype=torch.int32, device=device)

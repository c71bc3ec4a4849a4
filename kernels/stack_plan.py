"""The program of the stack kernels: a network's layers as a list of entries in memory, and its weights in one piece.

stack.py and stack_narrow.py run a whole network in one launch. They read from this list what each layer multiplies,
so one compiled kernel serves every depth, every sequence of widths, and residual blocks.

    B images   I, O channels of a layer
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import Argument
from .formulas import LRELU_GAIN
from .modulate import modulate_fwd
from .network import Network

NONE = -1


@dataclass(frozen=True)
class StackEntry:
    """One product for a tile of pixels: act(x W'ᵀ + β), or (act(x W'ᵀ + β) + around)/√2.

    A program keeps a tile's activations in a few regions of memory; `source`, `target` and `around` are indices of
    regions. Offsets count elements. -1 stands for none. A shortcut is an entry without a bias; it is not activated.
    """

    inputs: int  # I
    outputs: int  # O
    weight: int  # offset in a sample's weights
    bias: int  # offset in the biases, which begin with that of the colours [3]
    tap: int  # offset of an RGB tap [3, O] in a sample's weights
    source: int  # region that is read
    target: int  # region that is written
    around: int  # region that is added to the result


def _column(name: str) -> tl.constexpr:
    """The column of a field of `StackEntry` in the list of entries, as kernels take it."""
    return tl.constexpr([field.name for field in fields(StackEntry)].index(name))


FIELDS = tl.constexpr(len(fields(StackEntry)))
INPUTS = _column("inputs")
OUTPUTS = _column("outputs")
WEIGHT = _column("weight")
BIAS = _column("bias")
TAP = _column("tap")
SOURCE = _column("source")
TARGET = _column("target")
AROUND = _column("around")


@triton.jit
def field(entries_ptr, entry, column: tl.constexpr):
    return tl.load(entries_ptr + entry * FIELDS + column)


@triton.jit
def width(entries_ptr, entry, column: tl.constexpr, ALIGNED: tl.constexpr):
    """A number of channels or an offset. With ALIGNED the compiler may assume that it is a multiple of 16."""
    value = tl.load(entries_ptr + entry * FIELDS + column)
    if ALIGNED:
        value = tl.multiple_of(value, 16)
    return value


@dataclass(frozen=True)
class Plan:
    """The entries of a network, from the first layer on, and how much memory they need."""

    entries: tuple[StackEntry, ...]
    weights: int  # elements of a sample's weights
    regions: int  # regions for a tile's activations

    @property
    def inputs(self) -> list[int]:
        """Channels that each entry reads."""
        return [entry.inputs for entry in self.entries]

    @property
    def outputs(self) -> list[int]:
        """Channels that each entry writes."""
        return [entry.outputs for entry in self.entries]

    @property
    def aligned(self) -> bool:
        """Whether all widths are multiples of 16; then the offsets of all weights but the taps' are, too."""
        return all(n % 16 == 0 for n in self.inputs + self.outputs)


def plan_of(network: Network) -> Plan:
    """The plan of a network."""
    inputs = tuple(weight.shape[1] for weight in network.weights)
    return _plan(inputs, tuple(network.widths), tuple(network.tapped), tuple(network.blocks.items()))


@lru_cache
def _plan(
    inputs: tuple[int, ...],
    widths: tuple[int, ...],
    tapped: tuple[int, ...],
    blocks: tuple[tuple[int, int | None], ...],
) -> Plan:
    """The plan for layers of these widths; `blocks` are the items of `Network.blocks`.

    Layers alternate between two regions. A residual block's result overwrites the region of the block's input. A block
    that changes the width writes its shortcut to a third region; the result overwrites that one, and the input's region
    becomes free.
    """
    shortcut_of = dict(blocks)
    weights, biases = 0, 3
    entries: list[StackEntry] = []

    def add(layer: int, source: int, target: int, *, around: int = NONE) -> None:
        nonlocal weights, biases
        tap = layer in tapped
        tap_offset = weights + widths[layer] * inputs[layer] if tap else NONE
        entries.append(StackEntry(inputs[layer], widths[layer], weights, biases, tap_offset, source, target, around))
        weights += widths[layer] * (inputs[layer] + 3 * tap)
        biases += widths[layer]

    def add_shortcut(first: int, last: int, source: int, target: int) -> None:
        nonlocal weights
        entries.append(StackEntry(inputs[first], widths[last], weights, NONE, NONE, source, target, NONE))
        weights += widths[last] * inputs[first]

    add(0, 0, 1)
    here, free = 1, [0, 2]
    for first in range(1, len(widths), 2):
        middle, spare = free
        last = first + 1
        add(first, here, middle)
        if shortcut_of.get(last) is not None:
            add_shortcut(first, last, here, spare)
            here, free = spare, [middle, here]
        add(last, middle, here, around=here if last in shortcut_of else NONE)
    return Plan(tuple(entries), weights, 1 + max(entry.target for entry in entries))


def packed(network: Network, plan: Plan, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weights of each sample one after another, [B, weights], and all biases, float32, that of the colours first.

    The gain of the activation is in both.
    """
    B = network.batch
    w = torch.empty(B, plan.weights, dtype=dtype, device=network.freq.device)

    def part(offset: int, outputs: int, inputs: int) -> Tensor:
        return w[:, offset : offset + outputs * inputs].view(B, outputs, inputs)

    layers = iter(zip(network.weights, network.styles, strict=True))
    taps = iter(zip(network.tap_weights, network.tap_styles, strict=True))
    shortcuts = iter(network.shortcuts)
    for entry in plan.entries:
        target = part(entry.weight, entry.outputs, entry.inputs)
        if entry.bias == NONE:
            target.copy_(next(shortcuts))
        else:
            modulate_fwd(*next(layers), demodulate=True, gain=LRELU_GAIN, dtype=dtype, w=target)
        if entry.tap != NONE:
            target = part(entry.tap, 3, entry.outputs)
            modulate_fwd(*next(taps), demodulate=False, gain=1.0, dtype=dtype, w=target)
    colours = torch.stack([bias.float() for bias in network.tap_biases]).sum(0)
    biases = torch.cat([colours, *(bias.float() for bias in network.biases)])
    biases[3:] *= LRELU_GAIN
    return w, biases


def arguments(
    network: Network, plan: Plan, coords: Tensor, table_coords: Tensor | None, dtype: torch.dtype
) -> dict[str, Argument]:
    """What both stack kernels take, by name. The kernel writes the colours to `rgb_ptr`, float32 [B, P, 3]."""
    B, P, device = network.batch, coords.shape[1], coords.device
    table_coords = coords if table_coords is None else table_coords
    w, biases = packed(network, plan, dtype)
    return {
        "coords_ptr": coords.contiguous(),
        "table_coords_ptr": table_coords.contiguous(),
        "freq_ptr": network.freq.contiguous(),
        "phase_ptr": network.phase.contiguous(),
        "table_ptr": network.table.contiguous(),
        "entries_ptr": in_memory(plan.entries, device),
        "w_ptr": w,
        "bias_ptr": biases,
        "rgb_ptr": torch.empty(B, P, 3, dtype=torch.float32, device=device),
        "P": P,
        "C": network.freq.shape[0],
        "H": network.table.shape[0],
        "W": network.table.shape[1],
        "entries": len(plan.entries),
        "coords_stride_b": P if coords.shape[0] == B else 0,  # in points
        "table_coords_stride_b": P if table_coords.shape[0] == B else 0,
        "w_stride_b": w.stride(0),
    }


@lru_cache
def in_memory(entries: Sequence[StackEntry], device: torch.device) -> Tensor:
    """The entries as a kernel reads them, int32 [entries, FIELDS]."""
    return torch.tensor([astuple(entry) for entry in entries], dtype=torch.int32, device=device)

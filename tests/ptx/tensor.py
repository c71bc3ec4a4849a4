"""The Tensor Memory Accelerator: tensor maps, and bulk copies of boxes between global and shared memory.

A tensor map is opaque in the ISA; what is kept in its 128 bytes here is this emulator's own arrangement. Boxes that
reach over a tensor's edge read zeros there and store nothing there ("Tensor Copy: Out-of-Bound Handling").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .errors import EmulationError, Misaligned, OutOfBounds, UnknownInstruction
from .matrix import swizzle
from .registry import instruction
from .values import UNSIGNED

_FIELDS = {
    "global_address": ("<u8", 0),
    "global_stride": (("<u8", 5), 8),
    "global_dim": (("<u4", 5), 48),
    "box_dim": (("<u4", 5), 68),
    "element_stride": (("<u4", 5), 88),
    "rank": ("<u4", 108),
    "elemtype": ("<u4", 112),
    "interleave_layout": ("<u4", 116),
    "swizzle_mode": ("<u4", 120),
    "fill_mode": ("<u4", 124),
}
_formats, _offsets = zip(*_FIELDS.values(), strict=True)
TENSOR_MAP = np.dtype({"names": list(_FIELDS), "formats": _formats, "offsets": _offsets, "itemsize": 128})

# Codes of tensormap.replace ("tensormap.replace", tables of element types and swizzling modes).
ELEMENT_BYTES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 4, 9: 8, 10: 2, 11: 4, 12: 4}
SPAN = {0: 0, 1: 32, 2: 64, 3: 128}

LARGEST_BOX = 256


def _read_map(space, address: int) -> np.ndarray:
    """A tensor map as a record array of one."""
    return space.load(np.array([address]), 4, 32).view(TENSOR_MAP)[0]


def _write_map(space, address: int, record: np.ndarray) -> None:
    space.store(np.array([address]), record.view(np.uint32).reshape(1, 32))


@instruction("tensormap")
def tensor_map(team, ins, mask):
    """Set a field of a tensor map, or publish it from shared to global memory ("tensormap.replace")."""
    block = team.block
    if ins.modifiers[0] == "cp_fenceproxy":
        team.whole_warps(mask)
        target, source = (_uniform_address(team, operand, mask) for operand in ins.operands[:2])
        _write_map(block.memory, target, _read_map(block.shared, source))
        return
    name = ins.modifiers[2]
    if ins.modifiers[:2] != ("replace", "tile") or name not in TENSOR_MAP.names:
        raise UnknownInstruction(f"{ins.opcode} is not modelled")
    space = block.shared if "shared::cta" in ins.modifiers else block.memory
    location, *ordinal, value = ins.operands
    address = _uniform_address(team, location, mask)
    record = _read_map(space, address)
    value = team.uniform(value, "u64" if ins.kind == "b64" else "u32", mask)
    if ordinal:
        record[name][0, ordinal[0].bits] = value
    else:
        record[name][0] = value
    _write_map(space, address, record)


def _uniform_address(team, operand, mask) -> int:
    addresses = team.address(operand)[team.active(mask)]
    if (addresses != addresses[0]).any():
        raise EmulationError("threads give different addresses of one tensor map")
    return int(addresses[0])


class TensorMap:
    """A checked tensor map: dimension 0 is the innermost, whose elements are next to each other."""

    def __init__(self, record: np.ndarray):
        record = record[0]
        rank = int(record["rank"]) + 1
        self.start, self.size = int(record["global_address"]), ELEMENT_BYTES[int(record["elemtype"])]
        self.box = record["box_dim"][:rank].astype(np.int64)
        self.extent = record["global_dim"][:rank].astype(np.int64)
        self.strides = np.concatenate([[self.size], record["global_stride"][: rank - 1].astype(np.int64)])
        self.span = SPAN[int(record["swizzle_mode"])]
        if record["interleave_layout"] or record["fill_mode"] or (record["element_stride"][:rank] != 1).any():
            raise UnknownInstruction("tensor maps with interleaving, NaN filling or element strides are not modelled")
        if self.start % 16 or (self.strides[1:] % 16).any():
            raise Misaligned(f"a tensor at {self.start:#x} with strides {self.strides[1:]} is not 16-byte aligned")
        row = int(self.box[0]) * self.size
        if (self.box < 1).any() or (self.box > LARGEST_BOX).any() or row % 16 or (self.span and row > self.span):
            raise EmulationError(f"a box of {self.box} elements does not suit a swizzling span of {self.span} bytes")

    def cells(self, corner: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """[n] global addresses of a box's elements, innermost first, and which of them lie inside the tensor."""
        axes = [first + np.arange(length) for first, length in zip(corner, self.box, strict=True)]
        where = [grid.ravel() for grid in np.meshgrid(*reversed(axes), indexing="ij")][::-1]
        inside = np.logical_and.reduce([(w >= 0) & (w < n) for w, n in zip(where, self.extent, strict=True)])
        return self.start + sum(w * s for w, s in zip(where, self.strides, strict=True)), inside


def bulk_copy(team, ins, mask) -> None:
    """cp.async.bulk: tensor copies, and the groups of those that store."""
    action = ins.modifiers[2]
    warps = team.active(mask).reshape(team.warps, -1).any(axis=1)
    if action == "commit_group":
        team.stores.commit(warps)
    elif action == "wait_group":
        team.stores.wait(ins.operands[0].bits, warps)
    elif action == "tensor" and ins.modifiers[4] in ("shared::cta", "shared::cluster", "global"):
        if not {"multicast::cluster", "im2col", "tile::gather4", "tile::scatter4"}.isdisjoint(ins.modifiers):
            raise UnknownInstruction(f"{ins.opcode} is not modelled")
        for lane in np.flatnonzero(team.active(mask)):
            _tensor_copy(team, ins, lane, loads=ins.modifiers[4] != "global")
    else:
        raise UnknownInstruction(f"{ins.opcode} is not modelled")


def _tensor_copy(team, ins, lane: int, loads: bool) -> None:
    """One thread's copy of a box: a load completes on an mbarrier, a store with the thread's bulk group."""
    block, operands = team.block, ins.operands
    described, near = (operands[1], operands[0]) if loads else (operands[0], operands[1])
    tensor = TensorMap(_read_map(block.memory, int(team.address(described)[lane])))
    corner = [int(team.each(coordinate, "s32")[lane]) for coordinate in described.coordinates]
    far, inside = tensor.cells(corner)
    start = int(team.address(near)[lane])
    if start % 128:
        raise Misaligned(f"a tensor copy's shared address {start:#x} is not 128-byte aligned")
    here = swizzle(start + np.arange(len(far)) * tensor.size, tensor.span)
    moved = int(inside.sum()) * tensor.size
    if loads:
        barrier = block.mbarriers.get(int(team.address(operands[2])[lane]))
        if barrier is None:
            raise EmulationError("a tensor copy names no initialised mbarrier")

        def land() -> None:
            values = np.zeros((len(far), 1), UNSIGNED[8 * tensor.size])
            values[inside] = block.memory.load(far[inside], tensor.size)
            block.shared.store(here, values)
            barrier.complete(len(far) * tensor.size)

        block.count("global bytes loaded", moved)
        barrier.begin(_blaming(ins, land))
    else:

        def leave(due: np.ndarray) -> None:
            block.memory.store(far[inside], block.shared.load(here[inside], tensor.size))

        block.count("global bytes stored", moved)
        warps = np.arange(team.warps) == lane // (team.size // team.warps)
        team.stores.issue(_blaming(ins, leave), warps, block.mode.reads_late)


def _blaming(ins, transfer: Callable) -> Callable:
    """The transfer, whose faults name the instruction that issued it and not the one that waits."""

    def run(*arguments) -> None:
        try:
            transfer(*arguments)
        except OutOfBounds as fault:
            raise EmulationError(f"{fault}, in the tensor copy of PTX line {ins.line}") from fault

    return run

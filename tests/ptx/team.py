"""A team: consecutive warps of one block that execute together, with their registers and their places in the code.

In near lockstep the whole block is one team; where warps are to run one at a time, every warp is one. The threads of a
team that stand at the same instruction form a fragment. Of the fragments that can go on, the one that is furthest
behind (the smallest program counter) runs until it meets another, jumps, or has to wait: this brings threads that a
branch drove apart together again where the code joins.

Masks are arrays of one bool a thread, or None for all threads of the team, which is the common and the fast case.
"""

from __future__ import annotations

import numpy as np

from .completion import CommitGroups
from .errors import Divergence, EmulationError, MemoryFault, StepLimit, UnknownInstruction
from .memory import GLOBAL_BASE, LOCAL_BASE, LocalMemory
from .values import NATIVE, UNSIGNED, WIDTH

WARP = 32

GARBAGE = {16: 0x7FAD, 32: 0x7FC0DEAD, 64: 0x7FF8DEAD7FC0DEAD}
"""What a register holds before it is written: NaN as a float, and as an address nothing that exists."""


class Fragment:
    """Threads at one program counter. `waiting` names what they wait for: ("barrier", 0), ("mbarrier", address)."""

    __slots__ = ("mask", "pc", "waiting")

    def __init__(self, pc: int, mask: np.ndarray | None):
        self.pc, self.mask, self.waiting = pc, mask, None


class Team:
    """Threads `first` to `first + size - 1` of a block."""

    def __init__(self, block, first: int, size: int):
        self.block, self.first, self.size = block, first, size
        self.warps = size // WARP
        self.lane = np.arange(size) % WARP
        self.bits = {width: _garbage(width, count, size) for width, count in block.kernel.registers.items()}
        self.banks = {
            width: {kind: bits.view(dtype) for kind, dtype in NATIVE.items() if WIDTH[kind] == width}
            for width, bits in self.bits.items()
        }
        self.carry = np.zeros(size, np.uint64)
        self.special = self._special_registers()
        self.local = LocalMemory(block.kernel.local_bytes, size) if block.kernel.local_bytes else None
        self.alive = np.ones(size, bool)
        self.fragments = [Fragment(0, None)]
        # What cp.async, tensor stores and wgmma have begun and nothing has waited for, by warp.
        self.copies, self.stores, self.products = (CommitGroups(self.warps) for _ in range(3))

    def _special_registers(self) -> dict[str, np.ndarray]:
        threads = np.arange(self.first, self.first + self.size)
        special = {"%tid.x": threads, "%laneid": self.lane, "%warpid": threads // WARP}
        sizes = {"%ntid.x": self.block.threads, "%nwarpid": self.block.threads // WARP}
        sizes |= {"%tid.y": 0, "%tid.z": 0, "%ntid.y": 1, "%ntid.z": 1}
        for axis, index, extent in zip("xyz", self.block.index, self.block.grid, strict=True):
            sizes |= {f"%ctaid.{axis}": index, f"%nctaid.{axis}": extent}
        return special | {name: np.array(value) for name, value in sizes.items()}

    # Running.

    def can_run(self) -> bool:
        return any(fragment.waiting is None for fragment in self.fragments)

    def run(self) -> None:
        """Go on until every thread waits or has exited."""
        while ready := sorted((f for f in self.fragments if f.waiting is None), key=lambda f: f.pc):
            fragment = ready[0]
            if len(ready) > 1 and ready[1].pc == fragment.pc:
                self._merge(fragment, ready[1])
            else:
                self._execute(fragment, ready[1].pc if len(ready) > 1 else -1)

    def _execute(self, fragment: Fragment, meeting: int) -> None:
        """Run one fragment until it jumps, waits, exits or reaches the instruction where another one stands."""
        self.current, self.interrupted = fragment, False
        block, instructions = self.block, self.block.kernel.instructions
        try:
            while fragment.pc != meeting and not self.interrupted:
                instruction = instructions[fragment.pc]
                mask = fragment.mask
                fragment.pc += 1
                block.steps += 1
                if instruction.guard is not None:
                    chosen = instruction.guard.read(self, "pred")
                    chosen = chosen.copy() if mask is None else chosen & mask
                    if not chosen.any():
                        continue
                    if mask is not None or not chosen.all():
                        mask = chosen
                if block.counts is not None:
                    block.count(instruction.opcode, self.warps if mask is None else _warps_in(mask).sum())
                if instruction.handler is None:
                    raise UnknownInstruction(f"{instruction.opcode} is not modelled")
                if block.steps > block.step_limit:
                    raise StepLimit(f"the block has not ended after {block.step_limit} instructions")
                instruction.handler(self, instruction, mask)
        except EmulationError as error:
            threads = getattr(error, "threads", self.threads(mask))
            shown = ", ".join(map(str, threads[:4])) + (", ..." if len(threads) > 4 else "")
            error.context = (
                f"\n  PTX line {instruction.line}: {instruction.text}\n  block {block.index}, threads {shown}"
            )
            raise

    def _merge(self, fragment: Fragment, other: Fragment) -> None:
        mask = fragment.mask | other.mask
        fragment.mask = None if mask.all() else mask
        self.fragments.remove(other)

    # What control flow does to the fragment that is running.

    def branch(self, mask, target: int) -> None:
        self._part(mask).pc = target

    def wait(self, mask, reason: tuple) -> None:
        """The threads go no further until the block wakes those that wait for `reason`."""
        self._part(mask).waiting = reason

    def exit(self, mask) -> None:
        self.fragments.remove(self._part(mask))
        self.alive &= False if mask is None else ~mask

    def _part(self, mask) -> Fragment:
        """The running fragment where `mask` is all of it, else a new one of these threads."""
        self.interrupted = True
        fragment = self.current
        if mask is None or np.array_equal(mask, self.active(fragment.mask)):
            return fragment
        part = Fragment(fragment.pc, mask)
        fragment.mask = ~mask if fragment.mask is None else fragment.mask & ~mask
        self.fragments.append(part)
        return part

    # What handlers ask of their team.

    def active(self, mask) -> np.ndarray:
        """The mask as an array."""
        return np.ones(self.size, bool) if mask is None else mask

    def threads(self, mask) -> np.ndarray:
        """Numbers, within the block, of the threads in a mask."""
        return self.first + np.flatnonzero(self.active(mask))

    def each(self, operand, kind: str) -> np.ndarray:
        """An operand's values as an array of one a thread, constants included."""
        return self.spread(operand.read(self, kind))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """One value a thread, from that or from one value for all."""
        return values if values.shape == self.lane.shape else np.broadcast_to(values, self.size)

    def uniform(self, operand, kind: str, mask) -> int:
        """The value that an operand has in every active thread."""
        values = self.each(operand, kind)[self.active(mask)]
        if (values != values[0]).any():
            raise Divergence("threads give different values where all must agree")
        return int(values[0])

    def whole_warps(self, mask) -> np.ndarray:
        """[warps] bools: which warps execute. Raises where a warp does so with some of its living threads only."""
        if mask is None:
            return np.ones(self.warps, bool)
        warps = _warps_in(mask)
        if (warps & _warps_in(mask != self.alive)).any():
            raise Divergence("not all threads of a warp execute this warp-wide instruction together")
        return warps

    def gather(self, registers: tuple, kind: str) -> np.ndarray:
        """[registers, threads] values."""
        return np.stack([self.each(register, kind) for register in registers])

    def scatter(self, registers: tuple, kind: str, values: np.ndarray, mask) -> None:
        """Write [registers, threads] values."""
        for register, row in zip(registers, values, strict=True):
            register.write(self, kind, row, mask)

    # Memory.

    def address(self, operand) -> np.ndarray:
        """[threads] addresses as int64: 32-bit registers hold shared addresses, which extend with zeros."""
        width = getattr(operand.base, "width", 64)
        base = operand.base.read(self, f"u{width}")
        return self.spread(base.astype(np.int64) + operand.offset)

    def load(self, space: str, addresses: np.ndarray, width: int, count: int, mask) -> np.ndarray:
        """[threads] addresses -> [threads, count] unsigned integers of `width` bytes, zeros where not active."""
        if mask is None:
            return self._access(space, addresses, None, width * count, "loaded", lambda m, a: m.load(a, width, count))
        out = np.zeros((self.size, count), UNSIGNED[8 * width])
        out[mask] = self._access(space, addresses, mask, width * count, "loaded", lambda m, a: m.load(a, width, count))
        return out

    def store(self, space: str, addresses: np.ndarray, values: np.ndarray, mask) -> None:
        """Store [threads, count] unsigned integers at [threads] addresses."""
        chosen = values if mask is None else values[mask]
        span = values.dtype.itemsize * values.shape[1]
        self._access(space, addresses, mask, span, "stored", lambda m, a: m.store(a, chosen))

    def _access(self, space: str, addresses: np.ndarray, mask, span: int, verb: str, access):
        chosen = addresses if mask is None else addresses[mask]
        if chosen.size == 0:
            return access(self.block.shared, chosen)
        space = space or _space_of(int(chosen[0]))
        if space == "global" and self.block.counts is not None:
            self.block.count(f"global bytes {verb}", chosen.size * span)
        try:
            if space == "local":
                lanes = np.flatnonzero(self.active(mask))
                return access(self._local(), self._local().spread(chosen, lanes))
            return access(self.block.memory if space == "global" else self.block.shared, chosen)
        except MemoryFault as fault:
            fault.threads = self.threads(mask)[fault.lanes]
            raise

    def _local(self) -> LocalMemory:
        if self.local is None:
            raise MemoryFault("local memory is used that the kernel does not declare")
        return self.local


def _garbage(width: int, count: int, threads: int) -> np.ndarray:
    if width == 1:
        return np.arange(count * threads).reshape(count, threads) % 2 == 0
    return np.full((count, threads), GARBAGE[width], UNSIGNED[width])


def _warps_in(mask: np.ndarray) -> np.ndarray:
    return mask.reshape(-1, WARP).any(axis=1)


def _space_of(address: int) -> str:
    """The memory that a generic address lies in."""
    return "global" if address >= GLOBAL_BASE else "local" if address >= LOCAL_BASE else "shared"

"""Copies from global to shared memory that threads make with cp.async, and the mbarriers that tensor copies use."""

from __future__ import annotations

import numpy as np

from .completion import MemoryBarrier
from .errors import BarrierMisuse, UnknownInstruction
from .operands import Address, Sink
from .registry import instruction
from .tensor import bulk_copy


@instruction("cp")
def copy(team, ins, mask):
    """cp.async in all its forms."""
    if ins.modifiers[:2] == ("async", "bulk"):
        bulk_copy(team, ins, mask)
    elif ins.modifiers[1] == "commit_group":
        team.copies.commit(team.whole_warps(mask))
    elif ins.modifiers[1] == "wait_group":
        team.copies.wait(ins.operands[0].bits, team.whole_warps(mask))
    elif ins.modifiers[1] == "wait_all":
        warps = team.whole_warps(mask)
        team.copies.commit(warps)
        team.copies.wait(0, warps)
    elif ins.modifiers[1] in ("ca", "cg"):
        _copy_small(team, ins, mask)
    else:
        raise UnknownInstruction(f"{ins.opcode} is not modelled")


def _copy_small(team, ins, mask) -> None:
    """4, 8 or 16 bytes a thread; with a source size of zero, zeros and no access to the source ("cp.async")."""
    target, source, size, *source_size = ins.operands
    count = size.bits // 4
    active = team.active(mask)
    addresses = team.address(target).copy()
    wanted = active
    if source_size:
        sizes = team.each(source_size[0], "u32")
        if ((sizes != 0) & (sizes != size.bits) & active).any():
            raise UnknownInstruction(f"{ins.opcode}: a source size between zero and the whole is not modelled")
        wanted = active & (sizes == size.bits)
    far = team.address(source).copy()
    data = team.load("global", far, 4, count, wanted)

    def land(due: np.ndarray) -> None:
        landing = active & np.repeat(due, len(active) // len(due))
        if team.block.mode.writes_late:
            read = landing & wanted
            now = team.block.memory.load_again(far[read], 4, count)
            # Chance decides on what was stored in the source while the copy was under way.
            data[read] = np.where(now == data[read], now, 0xFFFFFFFF)
        team.store("shared", addresses, data, landing)

    team.copies.issue(land, active.reshape(team.warps, -1).any(axis=1), team.block.mode.writes_late)


def _barrier(team, address: int) -> MemoryBarrier:
    if address not in team.block.mbarriers:
        raise BarrierMisuse(f"there is no initialised mbarrier at {address:#x}")
    return team.block.mbarriers[address]


@instruction("mbarrier")
def mbarrier(team, ins, mask):
    """Each active thread's operation on its own barrier ("mbarrier")."""
    action = ins.modifiers[0]
    if action in ("try_wait", "test_wait"):
        _wait_for_phase(team, ins, mask)
        return
    first = ins.operands[0]
    if not isinstance(first, Sink | Address):
        raise UnknownInstruction(f"{ins.opcode}: the state of an arrival is not modelled")
    location, *amount = ins.operands[1:] if isinstance(first, Sink) else ins.operands
    addresses = team.address(location)
    amounts = team.each(amount[0], "u32") if amount else np.ones(team.size, np.uint32)
    for lane in np.flatnonzero(team.active(mask)):
        if action == "init":
            # The access is made for its checks.
            team.load("shared", addresses, 8, 1, np.arange(team.size) == lane)
            address = int(addresses[lane])
            team.block.mbarriers[address] = MemoryBarrier(team.block, address, int(amounts[lane]))
        else:
            _operate(team, ins, int(addresses[lane]), int(amounts[lane]))


def _operate(team, ins, address: int, amount: int) -> None:
    barrier = _barrier(team, address)
    action = ins.modifiers[0]
    if action == "inval":
        if barrier.transfers:
            raise BarrierMisuse(f"the mbarrier at {address:#x} is destroyed while copies are on their way")
        del team.block.mbarriers[address]
    elif action == "arrive" and "expect_tx" in ins.modifiers:
        barrier.expect(amount)
        barrier.arrive()
    elif action == "arrive":
        barrier.arrive(amount)
    elif action == "expect_tx":
        barrier.expect(amount)
    else:
        raise UnknownInstruction(f"{ins.opcode} is not modelled")


def _wait_for_phase(team, ins, mask) -> None:
    """Threads whose phase has not ended sleep until the barrier changes, and then ask again, as the loop around a
    try_wait makes them."""
    if "parity" not in ins.modifiers:
        raise UnknownInstruction(f"{ins.opcode}: waiting for a state is not modelled")
    target, location, parity = ins.operands[:3]
    addresses, parities, active = team.address(location), team.each(parity, "u32"), team.active(mask)
    passed = np.zeros(team.size, bool)
    for address, phase in set(zip(addresses[active].tolist(), parities[active].tolist(), strict=True)):
        asking = active & (addresses == address) & (parities == phase)
        passed[asking] = _barrier(team, address).passed(phase & 1)
    target.write(team, "pred", passed, mask)
    for address in set(addresses[active & ~passed].tolist()):
        team.wait(active & ~passed & (addresses == address), ("mbarrier", address))

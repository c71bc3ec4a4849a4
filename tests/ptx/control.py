"""Branches, exits, barriers between threads, and the instructions that order memory, which nothing here reorders."""

from __future__ import annotations

from .errors import EmulationError
from .registry import instruction


@instruction("bra", modifiers="uni")
def bra(team, ins, mask):
    team.branch(mask, ins.target)


@instruction("ret", "exit", modifiers="uni")
def ret(team, ins, mask):
    team.exit(mask)
    team.block.settle()


@instruction("trap")
def trap(team, ins, mask):
    raise EmulationError("the kernel trapped")


@instruction("bar", "barrier", modifiers="sync arrive warp aligned cta")
def bar(team, ins, mask):
    """bar.sync is barrier.sync.aligned: all threads of a warp come together ("bar, barrier")."""
    action = next(m for m in ("warp", "sync", "arrive") if m in ins.modifiers)
    if action == "warp" or ins.opcode.startswith("bar.") or "aligned" in ins.modifiers:
        team.whole_warps(mask)
    if action == "warp":
        return
    number = team.uniform(ins.operands[0], "u32", mask)
    count = team.uniform(ins.operands[1], "u32", mask) if len(ins.operands) > 1 else None
    arriving = len(team.threads(mask))
    if action == "sync":
        team.wait(mask, ("barrier", number))
    team.block.arrive(number, count, arriving)


@instruction("fence", "membar", "nanosleep", "setmaxnreg", "griddepcontrol")
def without_effect(team, ins, mask):
    """Memory is never reordered here, registers are never short, and kernels run one after another."""

"""How asynchronous work completes: commit groups, which a warp waits for, and mbarriers, which any thread may.

Hardware may do asynchronous work at any time between its issue and the wait for it. Three choices of that time show
three kinds of fault:

    lazy     everything takes effect when the code waits for it: a missing wait shows
    eager    everything takes effect when it is issued: a buffer overwritten before the code has read it shows
    crossed  what writes shared memory does so when issued, what reads it when waited for: a buffer refilled under
             a matrix product or a store that still reads it shows
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import numpy as np

from .errors import BarrierMisuse


class Mode(Enum):
    """When asynchronous work takes effect: whether its reads, and its writes, of shared memory are put off."""

    LAZY = "lazy"
    EAGER = "eager"
    CROSSED = "crossed"

    @property
    def reads_late(self) -> bool:
        return self is not Mode.EAGER

    @property
    def writes_late(self) -> bool:
        return self is Mode.LAZY


class CommitGroups:
    """What each warp has issued, group by group; `wait` takes the oldest groups' effects ("cp.async.commit_group")."""

    def __init__(self, warps: int):
        self.open: list[list[Callable]] = [[] for _ in range(warps)]
        self.committed: list[list[list[Callable]]] = [[] for _ in range(warps)]

    def issue(self, operation: Callable, warps: np.ndarray, late: bool) -> None:
        """`operation(due)` applies the effects in the warps that are due."""
        if not late:
            operation(warps)
            return
        for warp in np.flatnonzero(warps):
            self.open[warp].append(operation)

    def commit(self, warps: np.ndarray) -> None:
        for warp in np.flatnonzero(warps):
            self.committed[warp].append(self.open[warp])
            self.open[warp] = []

    def wait(self, pending: int, warps: np.ndarray) -> None:
        """Apply all but the `pending` newest groups of each of these warps, in the order of issue."""
        due: dict[Callable, np.ndarray] = {}
        for warp in np.flatnonzero(warps):
            groups = self.committed[warp]
            finished = max(len(groups) - pending, 0)
            for operation in (operation for group in groups[:finished] for operation in group):
                due.setdefault(operation, np.zeros(len(self.open), bool))[warp] = True
            self.committed[warp] = groups[finished:]
        for operation, which in due.items():
            operation(which)


class MemoryBarrier:
    """An mbarrier: a phase ends when all arrivals and all bytes that it expects have come ("mbarrier Phase")."""

    def __init__(self, block, address: int, count: int):
        self.block, self.address, self.count = block, address, count
        self.pending, self.bytes, self.phase = count, 0, 0
        self.transfers: list[Callable[[], None]] = []

    def arrive(self, count: int = 1) -> None:
        self.pending -= count
        if self.pending < 0:
            raise BarrierMisuse(f"more than {self.count} arrivals in one phase of the mbarrier at {self.address:#x}")
        self._settle()

    def expect(self, size: int) -> None:
        self.bytes += size

    def complete(self, size: int) -> None:
        self.bytes -= size
        self._settle()

    def begin(self, transfer: Callable[[], None]) -> None:
        """A copy that will complete on this barrier: at once, or when somebody waits for it."""
        if self.block.mode.writes_late:
            self.transfers.append(transfer)
            self.block.wake(("mbarrier", self.address))
        else:
            transfer()

    def passed(self, parity: int) -> bool:
        """Whether the phase of this parity has ended. Copies held back land one by one, and no more than it takes."""
        while self.transfers and self.phase == parity:
            self.transfers.pop(0)()
        return self.phase != parity

    def _settle(self) -> None:
        if self.pending == 0 and self.bytes == 0:
            self.phase ^= 1
            self.pending = self.count
            self.block.wake(("mbarrier", self.address))

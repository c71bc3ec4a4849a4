"""One thread block: its shared memory, its barriers, and the scheduler of its teams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .completion import MemoryBarrier, Mode
from .errors import BarrierMisuse, Deadlock
from .memory import Memory, SharedMemory
from .parser import Kernel
from .team import WARP, Team


@dataclass
class Barrier:
    """A named barrier: how many threads it waits for (None: all that live), and how many have come."""

    count: int | None = None
    arrived: int = 0


@dataclass
class Settings:
    """What all blocks of a launch share."""

    kernel: Kernel
    memory: Memory
    parameters: dict[str, int]
    constants: dict[str, int]
    grid: tuple[int, int, int]
    threads: int
    mode: Mode
    random: np.random.Generator | None
    counts: dict[str, int] | None
    shared_bytes: int
    step_limit: int


class Block:
    """Runs one block from its first instruction until all its threads have exited."""

    def __init__(self, settings: Settings, index: tuple[int, int, int]):
        self.index, self.grid, self.threads = index, settings.grid, settings.threads
        self.kernel, self.parameters, self.constants = settings.kernel, settings.parameters, settings.constants
        self.memory, self.shared = settings.memory, SharedMemory(settings.shared_bytes)
        self.mode, self.random, self.counts = settings.mode, settings.random, settings.counts
        self.steps, self.step_limit = 0, settings.step_limit
        self.barriers: dict[int, Barrier] = {}
        self.mbarriers: dict[int, MemoryBarrier] = {}
        size = self.threads if self.random is None else WARP
        self.teams = [Team(self, first, size) for first in range(0, self.threads, size)]

    def run(self) -> None:
        if self.memory.races is not None:
            self.memory.races.barriers += 1
        while any(team.fragments for team in self.teams):
            ready = [team for team in self.teams if team.can_run()]
            if not ready:
                raise Deadlock(f"block {self.index}: no thread can go on; " + self._who_waits())
            team = ready[0] if self.random is None else ready[self.random.integers(len(ready))]
            if self.memory.races is not None:
                self.memory.races.warp = team.first // WARP
            team.run()

    def count(self, what: str, amount: int) -> None:
        if self.counts is not None:
            self.counts[what] = self.counts.get(what, 0) + int(amount)

    def wake(self, reason: tuple) -> None:
        """Let all threads go on that wait for `reason`."""
        for team in self.teams:
            for fragment in team.fragments:
                if fragment.waiting == reason:
                    fragment.waiting = None

    def arrive(self, number: int, count: int | None, threads: int) -> None:
        """Threads come to a named barrier ("bar, barrier")."""
        barrier = self.barriers.setdefault(number, Barrier())
        if barrier.arrived and barrier.count != count:
            raise BarrierMisuse(f"barrier {number} is used for {barrier.count} threads and for {count} at once")
        barrier.count = count
        barrier.arrived += threads
        self.settle()

    def settle(self) -> None:
        """Open the barriers to which all have come; also called when threads exit, which then none waits for."""
        alive = sum(int(team.alive.sum()) for team in self.teams)
        for number, barrier in self.barriers.items():
            expected = alive if barrier.count is None or barrier.count == self.threads else barrier.count
            if barrier.arrived > expected:
                raise BarrierMisuse(f"{barrier.arrived} threads came to barrier {number} for {expected}")
            if barrier.arrived and barrier.arrived == expected:
                barrier.arrived = 0
                self.wake(("barrier", number))
                if self.memory.races is not None and expected == alive:
                    self.memory.races.barriers += 1

    def _who_waits(self) -> str:
        lines = []
        for team in self.teams:
            for fragment in team.fragments:
                kind, which = fragment.waiting
                name = f"mbarrier {which:#x}" if kind == "mbarrier" else f"barrier {which}"
                line = self.kernel.instructions[fragment.pc - 1].line
                threads = team.threads(fragment.mask)
                lines.append(f"{len(threads)} threads from {threads[0]} on wait for {name} at PTX line {line}")
        return "; ".join(lines)

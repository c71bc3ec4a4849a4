"""Races in global memory: warps of a block that touch the same bytes with no barrier between them.

Where warps run one at a time, all of them stand between the same two barriers of the block. On what one of them stored
since the last barrier another one cannot count: on a GPU chance would decide whether it is there yet. So the other one
loads poison, and poison is left where they store different values. What comes of it, if anything, shows in the results.

Barriers of some of the warps count as none; kernels whose warps wait for each other by mbarriers are not watched.
"""

from __future__ import annotations

import numpy as np

WARPS = 64
"""More than a block can have: a stamp is the number of barriers passed times this, plus the warp."""


class Races:
    """Which warp stored each byte last, and when."""

    def __init__(self, size: int):
        self.barriers, self.warp = 1, 0
        self.stamps = np.zeros(size, np.int32)

    def load(self, rows: np.ndarray, span: int) -> np.ndarray:
        """[n] multiples of `span` -> [n, span] bools: which bytes another warp stored since the last barrier."""
        stamps = self.stamps.reshape(-1, span)[rows]
        return (stamps >= self.barriers * WARPS) & (stamps != self._stamp)

    def store(self, rows: np.ndarray, span: int) -> np.ndarray:
        """The same, where the running warp stores."""
        raced = self.load(rows, span)
        self.stamps.reshape(-1, span)[rows] = self._stamp
        return raced

    @property
    def _stamp(self) -> int:
        return self.barriers * WARPS + self.warp

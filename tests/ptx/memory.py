"""Memories: byte arrays whose every access is checked for bounds and alignment.

Three address ranges that do not meet, so that a generic address says by itself which memory it means: shared memory
just above zero, local memory at 16 MiB, global memory far above. A null pointer belongs to none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import BadArguments, Misaligned, OutOfBounds
from .races import Races
from .values import UNSIGNED

SHARED_BASE = 0x400
LOCAL_BASE = 0x0100_0000
GLOBAL_BASE = 0x7F00_0000_0000

GUARD_BYTES = 1 << 16
"""Unowned bytes between two allocations: more than a kernel that is one tile off will step over."""

POISON = 0xFF
"""Fills every byte that nothing wrote: NaN in every float format, minus one as an integer."""

WIDEST_ACCESS = 128


class Space:
    """Bytes at consecutive addresses. `owned` marks those that may be accessed."""

    def __init__(self, name: str, base: int, size: int):
        self.name, self.base = name, base
        self._allocate(size)

    def _allocate(self, size: int) -> None:
        size = -(-size // WIDEST_ACCESS) * WIDEST_ACCESS
        self.bytes = np.full(size, POISON, np.uint8)
        self.owned = np.zeros(size, bool)
        self._views: dict[tuple[int, int], np.ndarray] = {}

    def view(self, width: int, count: int) -> np.ndarray:
        """All bytes as rows of `count` unsigned integers of `width` bytes."""
        if (width, count) not in self._views:
            self._views[width, count] = self.bytes.view(UNSIGNED[8 * width]).reshape(-1, count)
        return self._views[width, count]

    def load(self, addresses: np.ndarray, width: int, count: int = 1) -> np.ndarray:
        """[n] addresses -> [n, count] unsigned integers of `width` bytes."""
        return self.view(width, count)[self._checked(addresses, width * count)]

    def store(self, addresses: np.ndarray, values: np.ndarray) -> None:
        """Store [n, count] unsigned integers, one row at each of [n] addresses; of equal addresses the last wins."""
        width, count = values.dtype.itemsize, values.shape[1]
        self.view(width, count)[self._checked(addresses, width * count)] = values

    def _checked(self, addresses: np.ndarray, span: int) -> np.ndarray:
        """Row numbers of accesses of `span` bytes. Guards are wider than any access: its two ends tell all of it."""
        offsets = addresses - self.base
        if offsets.size == 0:
            return offsets
        last = offsets + (span - 1)
        if offsets.min() < 0 or last.max() >= self.bytes.size or not (self.owned[offsets] & self.owned[last]).all():
            self._refuse(addresses, offsets, span)
        if (offsets & (span - 1)).any():
            lanes = np.flatnonzero(offsets & (span - 1))
            raise Misaligned(f"{span} bytes at {self.name} address {addresses[lanes[0]]:#x} are misaligned", lanes)
        return offsets // span

    def _refuse(self, addresses: np.ndarray, offsets: np.ndarray, span: int) -> None:
        inside = (offsets >= 0) & (offsets + span <= self.bytes.size)
        rows = np.where(inside, offsets, 0)
        good = inside & self.owned[rows] & self.owned[np.minimum(rows + span - 1, self.bytes.size - 1)]
        lanes = np.flatnonzero(~good)
        where = int(addresses[lanes[0]])
        raise OutOfBounds(f"{span} bytes at {self.name} address {where:#x} {self.describe(where)}", lanes)

    def describe(self, address: int) -> str:
        return f"lie outside its {int(self.owned.sum())} bytes"


class SharedMemory(Space):
    """A block's shared memory, poisoned when the block starts."""

    def __init__(self, size: int):
        super().__init__("shared", SHARED_BASE, size)
        self.owned[:size] = True


class LocalMemory(Space):
    """Private arrays, one a thread: every thread uses the same addresses, `spread` sets them apart."""

    def __init__(self, size: int, threads: int):
        self.stride = -(-size // WIDEST_ACCESS) * WIDEST_ACCESS + WIDEST_ACCESS
        super().__init__("local", LOCAL_BASE, self.stride * threads + WIDEST_ACCESS)
        self.owned[: self.stride * threads].reshape(threads, self.stride)[:, :size] = True
        self.size = size

    def spread(self, addresses: np.ndarray, lanes: np.ndarray) -> np.ndarray:
        outside = (addresses < LOCAL_BASE) | (addresses >= LOCAL_BASE + self.size)
        if outside.any():
            bad = np.flatnonzero(outside)
            raise OutOfBounds(f"local address {int(addresses[bad[0]]):#x} {self.describe(0)}", bad)
        return addresses + lanes * self.stride


@dataclass
class Allocation:
    """An array in global memory."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass
class Traffic:
    """Bytes between a kernel and a range of memory.

    What an instruction of a block (of a warp, where warps run one at a time) asks for in several threads counts once:
    threads that hold the same element of a small tile are the compiler's choice, and hardware serves them together.
    """

    loaded: int = 0
    stored: int = 0
    distinct_loaded: int = 0  # however often
    distinct_stored: int = 0


class Memory(Space):
    """Global memory: arrays far apart from each other, with a record of how often each byte was loaded and stored."""

    def __init__(self, size: int = 1 << 20):
        super().__init__("global", GLOBAL_BASE, size)
        self.top = GUARD_BYTES
        self.allocations: dict[int, Allocation] = {}
        self.races: Races | None = None

    def _allocate(self, size: int) -> None:
        super()._allocate(size)
        self.loads, self.stores = (np.zeros(self.bytes.size, np.int32) for _ in range(2))

    def place(self, array: np.ndarray) -> int:
        """Copy an array into global memory; bfloat16 comes as its uint16 bits. Returns its address."""
        array = np.ascontiguousarray(array)
        address = self.reserve(array.shape, array.dtype)
        start = address - self.base
        self.bytes[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        return address

    def reserve(self, shape: tuple[int, ...] | int, dtype) -> int:
        """Uninitialised, that is poisoned, memory for an array. Returns its address, a multiple of 256."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        allocation = Allocation(self.top, shape, np.dtype(dtype))
        end = allocation.start + allocation.nbytes
        if end + GUARD_BYTES > self.bytes.size:
            self._grow(end + GUARD_BYTES)
        self.owned[allocation.start : end] = True
        self.top = -(-(end + GUARD_BYTES) // 256) * 256
        address = self.base + allocation.start
        self.allocations[address] = allocation
        return address

    def fetch(self, address: int) -> np.ndarray:
        """A copy of the array that was placed or reserved at `address`, as it is now."""
        return self._part(self.bytes, address).view(self.allocations[address].dtype).reshape(self._shape(address))

    def unwritten(self, address: int) -> np.ndarray:
        """Mask, in the array's shape, of the elements that no kernel has stored (in full)."""
        allocation = self._allocation(address)
        stores = self._part(self.stores, address).reshape(-1, allocation.dtype.itemsize)
        return ~stores.all(axis=1).reshape(allocation.shape)

    def traffic(self, address: int, size: int) -> Traffic:
        """What moved to and from `size` bytes so far."""
        start = address - self.base
        loads, stores = (times[start : start + size] for times in (self.loads, self.stores))
        distinct = int(np.count_nonzero(loads)), int(np.count_nonzero(stores))
        return Traffic(int(loads.sum()), int(stores.sum()), *distinct)

    def load(self, addresses: np.ndarray, width: int, count: int = 1) -> np.ndarray:
        values = super().load(addresses, width, count)
        self._note(self.loads, addresses, width * count)
        return self._raced(addresses, values)

    def load_again(self, addresses: np.ndarray, width: int, count: int) -> np.ndarray:
        """What an asynchronous copy, counted when it was issued, finds when it takes effect."""
        return self._raced(addresses, super().load(addresses, width, count))

    def _raced(self, addresses: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The values, poisoned where a race decides what they are."""
        if self.races is not None and len(values):
            span = values.dtype.itemsize * values.shape[1]
            raced = self.races.load((addresses - self.base) // span, span)
            values.view(np.uint8).reshape(-1, span)[raced] = POISON
        return values

    def store(self, addresses: np.ndarray, values: np.ndarray) -> None:
        span = values.dtype.itemsize * values.shape[1]
        if self.races is not None and len(values):
            rows = (addresses - self.base) // span
            values = np.ascontiguousarray(values).copy()
            new, old = values.view(np.uint8).reshape(-1, span), self.bytes.reshape(-1, span)[rows]
            new[self.races.store(rows, span) & (new != old)] = POISON
        super().store(addresses, values)
        self._note(self.stores, addresses, span)

    def _note(self, times: np.ndarray, addresses: np.ndarray, span: int) -> None:
        # Adds one to each row, however often an address occurs.
        times.reshape(-1, span)[(addresses - self.base) // span] += 1

    def describe(self, address: int) -> str:
        """Where an address lies that no allocation owns, for the error message."""
        before = [a for a in self.allocations if a <= address]
        if not before:
            return "lie before every allocation"
        start = max(before)
        allocation = self.allocations[start]
        beyond = address - start - allocation.nbytes
        array = f"the array {allocation.shape} of {allocation.dtype} at {start:#x}"
        return f"lie {beyond} bytes past the end of {array}" if beyond >= 0 else f"cross the end of {array}"

    def _allocation(self, address: int) -> Allocation:
        if address not in self.allocations:
            raise BadArguments(f"{address:#x} is not the address of an array that was placed or reserved")
        return self.allocations[address]

    def _shape(self, address: int) -> tuple[int, ...]:
        return self._allocation(address).shape

    def _part(self, source: np.ndarray, address: int) -> np.ndarray:
        allocation = self._allocation(address)
        return source[allocation.start : allocation.start + allocation.nbytes].copy()

    def _grow(self, size: int) -> None:
        old = self.bytes, self.owned, self.loads, self.stores
        self._allocate(max(size, 2 * self.bytes.size))
        for new, previous in zip((self.bytes, self.owned, self.loads, self.stores), old, strict=True):
            new[: previous.size] = previous

"""How many programs of a kernel a processor holds at a time, from what each takes."""

from typing import NamedTuple

from ..chips import Chip
from .compile import Resources

QUARTERS = 4  # a processor's registers lie in four parts, and a warp's in one of them
TENSOR_MEMORY = 512  # columns a processor, sm_100


class Occupancy(NamedTuple):
    """Programs and warps that a processor holds, and which of its resources ends first."""

    programs: int
    warps: int
    limit: str


def occupancy(chip: Chip, used: Resources, warps: int) -> Occupancy:
    """For programs of so many warps.

    Registers are given to a thread by the eight. On NVIDIA's chips shared memory is given by the 128 bytes.
    """
    registers_a_warp = _rounded(used.registers, 8) * chip.lanes
    warps_by_registers = QUARTERS * (chip.registers // QUARTERS // registers_a_warp)
    bounds = {
        "registers": warps_by_registers // warps,
        "shared memory": chip.shared // max(1, _rounded(used.shared, 128) + chip.reserved),
        "warps": chip.warps // warps,
        "programs": chip.programs,
    }
    if used.tensor_memory:
        bounds["tensor memory"] = TENSOR_MEMORY // used.tensor_memory
    limit = min(bounds, key=bounds.__getitem__)
    return Occupancy(bounds[limit], bounds[limit] * warps, limit)


def _rounded(n: int, step: int) -> int:
    return -(-n // step) * step

"""How many programs of a kernel a processor holds at the same time, from the resources of one program."""

from typing import NamedTuple

from ..chips import Chip
from .compile import Resources

REGISTER_FILES = 4  # a processor's registers are in four files of equal size, and a warp's are in one of them
TENSOR_MEMORY_COLUMNS = 512  # per processor, sm_100


class Occupancy(NamedTuple):
    """The programs and warps that a processor holds, and which of its resources limits them."""

    programs: int
    warps: int
    limit: str


def occupancy(chip: Chip, used: Resources, warps: int) -> Occupancy:
    """The occupancy of a chip by programs of `warps` warps that use these resources.

    A thread gets registers in multiples of 8. On NVIDIA's chips a program gets shared memory in multiples of 128 bytes.
    """
    registers_a_warp = _rounded(used.registers, 8) * chip.lanes
    warps_by_registers = REGISTER_FILES * (chip.registers // REGISTER_FILES // registers_a_warp)
    bounds = {
        "registers": warps_by_registers // warps,
        "shared memory": chip.shared // max(1, _rounded(used.shared, 128) + chip.reserved),
        "warps": chip.warps // warps,
        "programs": chip.programs,
    }
    if used.tensor_memory:
        bounds["tensor memory"] = TENSOR_MEMORY_COLUMNS // used.tensor_memory
    limit = min(bounds, key=bounds.__getitem__)
    return Occupancy(bounds[limit], bounds[limit] * warps, limit)


def _rounded(n: int, unit: int) -> int:
    return -(-n // unit) * unit

"""How fast a GPU could be at best: the vendors' figures, and the time that work cannot take less of.

Importing this module needs neither Triton nor a GPU.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from .launch import precision


@dataclass(frozen=True)
class Chip:
    """A GPU's data sheet. A processor is what NVIDIA calls an SM and AMD a CU."""

    name: str
    architecture: str
    processors: int
    half: float  # FLOP/s, dense products of bfloat16 or float16 factors
    tf32: float  # FLOP/s, dense products of tf32 factors
    memory: float  # bytes/s
    l2: int  # bytes of the last cache before memory
    registers: int = 65536  # of 32 bits, a processor
    shared: int = 228 << 10  # bytes a processor
    reserved: int = 1 << 10  # bytes of them that each program takes for the driver
    warps: int = 64  # a processor
    programs: int = 32  # a processor
    lanes: int = 32  # of a warp

    def rate(self, kind: str) -> float | None:
        """FLOP/s in products of a kind, `half`, `tf32` or `ieee`; None for the last, whose rate is not listed here."""
        return {"half": self.half, "tf32": self.tf32}.get(kind)

    def floor(self, flop: float, moved: float, kind: str = "half") -> "Floor | None":
        """The least time for `flop` operations in products and `moved` bytes; None where the rate is not known."""
        rate = self.rate(kind)
        if flop and rate is None:
            return None
        arithmetic, memory = flop / rate if flop else 0.0, moved / self.memory
        return Floor(max(arithmetic, memory), "arithmetic" if arithmetic > memory else "memory")


class Floor(NamedTuple):
    """The least time that work takes, and what it is bound by: `arithmetic` or `memory`."""

    seconds: float
    bound: str


# NVIDIA's data sheets (rates without sparsity), architecture white papers and tuning guides; AMD's data sheet, CDNA 3
# white paper and ROCm's table of GPU specifications. MI300X has 4 MiB of L2 in each of eight dies; what stands between
# them and memory is its Infinity Cache.
A100 = Chip(
    "A100 80 GB", "sm_80", processors=108, half=312e12, tf32=156e12, memory=2.039e12, l2=40 << 20, shared=164 << 10
)
H100 = Chip("H100 SXM", "sm_90", processors=132, half=989e12, tf32=494.5e12, memory=3.35e12, l2=50 << 20)
H200 = replace(H100, name="H200", memory=4.8e12)
B200 = Chip("B200", "sm_100", processors=148, half=2250e12, tf32=1125e12, memory=8.0e12, l2=126 << 20)
MI300X = Chip(
    "MI300X",
    "gfx942",
    processors=304,
    half=1307e12,
    tf32=653.5e12,
    memory=5.3e12,
    l2=256 << 20,
    registers=131072,
    shared=64 << 10,
    reserved=0,
    warps=32,
    programs=16,
    lanes=64,
)
CHIPS = (A100, H100, H200, B200, MI300X)

# Under the names that `torch.cuda.get_device_name()` gives.
_A100_40GB = replace(A100, name="A100 40 GB", memory=1.555e12)
DEVICES = {
    "NVIDIA A100-SXM4-40GB": _A100_40GB,
    "NVIDIA A100-PCIE-40GB": _A100_40GB,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H200,
    "NVIDIA B200": B200,
    "AMD Instinct MI300X": MI300X,
}


def products_setting() -> str:
    """How PyTorch is set to multiply float32 matrices on an NVIDIA GPU: `tf32` or `ieee`."""
    return precision(torch.float32, "sm_80")


def floor_seconds(device: str, dtype: torch.dtype, flop: float, moved: float) -> float | None:
    """The least time that products and memory traffic take; None for a device or a precision that is not in the table.

    Args:
        device: its name, as `torch.cuda.get_device_name()` gives it.
        dtype: of the factors; float32 counts where PyTorch is set to multiply it as tf32.
        flop: operations in matrix products.
        moved: bytes read and written.
    """
    chip = DEVICES.get(device)
    if chip is None:
        return None
    floor = chip.floor(flop, moved, "half" if dtype.itemsize == 2 else precision(dtype, chip.architecture))
    return None if floor is None else floor.seconds

"""GPUs: one record per chip with its limits and its data sheet; the dtypes of factors and how chips multiply them.

A new chip is one record here and one table in tiles.py. A new dtype is one entry of `DTYPES`. Importing this module
needs neither Triton nor a GPU.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

INTERPRETER = "interpreter"


class Factors(NamedTuple):
    """How kernels take weights and activations of a dtype."""

    name: str  # Triton's name of the dtype
    kind: str | None  # of the factors in products; None for float32, where PyTorch's settings decide


# The dtypes of weights and activations that kernels take.
DTYPES = {
    torch.bfloat16: Factors("bf16", "half"),
    torch.float16: Factors("fp16", "half"),
    torch.float32: Factors("fp32", None),
}


@dataclass(frozen=True)
class Chip:
    """A GPU's data sheet. A processor is what NVIDIA calls an SM and AMD a CU.

    Rates are None if no data sheet was looked up; then only the limits are known.
    """

    name: str
    architecture: str
    processors: int
    l2: int  # bytes of the last cache before memory
    shared: int = 228 << 10  # bytes of shared memory per processor
    reserved: int = 1 << 10  # bytes of shared memory that the driver takes for each program
    spare_stages: int = 0  # stages of a pipelined loop that need no buffer in shared memory
    half: float | None = None  # FLOP/s, dense products of bfloat16 or float16 factors
    tf32: float | None = None  # FLOP/s, dense products of tf32 factors
    memory: float | None = None  # bytes/s
    registers: int = 65536  # 32-bit registers per processor
    warps: int = 64  # warps that a processor holds
    programs: int = 32  # programs that a processor holds
    lanes: int = 32  # threads per warp

    @property
    def program_shared(self) -> int:
        """Bytes of shared memory that one program can use."""
        return self.shared - self.reserved

    def rate(self, kind: str) -> float | None:
        """FLOP/s in products of a kind of factors, see `factor_kind`; None for `ieee`, whose rate is not listed."""
        return {"half": self.half, "tf32": self.tf32}.get(kind)

    def floor(self, flop: float, moved: float, kind: str = "half") -> "Floor | None":
        """The least time for `flop` operations in products and `moved` bytes; None if a rate is not known."""
        rate = self.rate(kind)
        if self.memory is None or (flop and rate is None):
            return None
        arithmetic, memory = flop / rate if flop else 0.0, moved / self.memory
        return Floor(max(arithmetic, memory), "arithmetic" if arithmetic > memory else "memory")


class Floor(NamedTuple):
    """The least time that work takes, and which of the two bounds it: `arithmetic` or `memory`."""

    seconds: float
    bound: str


# Sources: NVIDIA's data sheets (rates without sparsity), architecture white papers and tuning guides; AMD's data sheet,
# CDNA 3 white paper and ROCm's table of GPU specifications. MI300X has 4 MiB of L2 in each of eight dies; its last
# cache before memory is the Infinity Cache. Hopper and the large Blackwell read operands from shared memory, so every
# stage of a loop needs a buffer there; on other chips one stage does not.
A100 = Chip(
    "A100 80 GB",
    "sm_80",
    processors=108,
    l2=40 << 20,
    shared=164 << 10,
    spare_stages=1,
    half=312e12,
    tf32=156e12,
    memory=2.039e12,
)
H100 = Chip("H100 SXM", "sm_90", processors=132, l2=50 << 20, half=989e12, tf32=494.5e12, memory=3.35e12)
H200 = replace(H100, name="H200", memory=4.8e12)
B200 = Chip("B200", "sm_100", processors=148, l2=126 << 20, half=2250e12, tf32=1125e12, memory=8.0e12)
MI300X = Chip(
    "MI300X",
    "gfx942",
    processors=304,
    l2=256 << 20,
    shared=64 << 10,
    reserved=0,
    spare_stages=1,
    half=1307e12,
    tf32=653.5e12,
    memory=5.3e12,
    registers=131072,
    warps=32,
    programs=16,
    lanes=64,
)
DATA_SHEETS = (A100, H100, H200, B200, MI300X)

_GEFORCE = Chip("GeForce", "sm_86", processors=84, l2=6 << 20, shared=100 << 10, spare_stages=1)
_UNKNOWN = Chip("unknown", "default", processors=64, l2=4 << 20, shared=48 << 10, reserved=0)
# For every architecture, the chip whose limits are used.
ARCHITECTURES = {
    "sm_80": A100,
    "sm_86": _GEFORCE,
    "sm_90": H100,
    "sm_100": B200,
    "sm_120": replace(_GEFORCE, architecture="sm_120", processors=170, l2=96 << 20),
    "gfx90a": replace(MI300X, name="MI250X", architecture="gfx90a", processors=104, l2=8 << 20),
    "gfx942": MI300X,
    "gfx1100": replace(_UNKNOWN, architecture="gfx1100"),
    "default": _UNKNOWN,
    INTERPRETER: Chip(INTERPRETER, INTERPRETER, processors=16, l2=1 << 30, shared=1 << 30, reserved=0),
}
# Architectures that use the record and the tables of another one.
SAME_AS = {"sm_87": "sm_86", "sm_89": "sm_86", "sm_103": "sm_100", "sm_121": "sm_120", "gfx950": "gfx942"}
# The architectures that every kernel is compiled for in tests and in the report.
TARGETS = ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100")

# Chips by the name that `torch.cuda.get_device_name()` returns.
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


def family(architecture: str) -> str:
    """The key of an architecture in `ARCHITECTURES` and in every table of tiles; `default` for an unknown one."""
    name = SAME_AS.get(architecture, architecture)
    return name if name in ARCHITECTURES else "default"


def chip_of(architecture: str) -> Chip:
    """The chip whose limits are used for an architecture."""
    return ARCHITECTURES[family(architecture)]


def factor_kind(dtype: torch.dtype, architecture: str) -> str:
    """How factors of a dtype are multiplied, the key of all tables: `half` (bfloat16, float16), `tf32` or `ieee`."""
    return own_kind(dtype) or precision(dtype, architecture)


def own_kind(dtype: torch.dtype) -> str | None:
    """The kind of factors of a dtype; None if it depends on the architecture and on PyTorch's settings."""
    return DTYPES[dtype].kind if dtype in DTYPES else None


def precision(dtype: torch.dtype, architecture: str) -> str:
    """How float32 factors are multiplied, `tf32` or `ieee`: the setting of PyTorch's own products on a GPU.

    For any other dtype it is `ieee`, because Triton asks for a precision there, too.
    """
    if dtype != torch.float32 or not architecture.startswith("sm_"):
        return "ieee"
    matmul = torch.backends.cuda.matmul
    # `fp32_precision` replaces `allow_tf32` in newer versions, which raise an error if a program uses both.
    setting = matmul.fp32_precision if hasattr(matmul, "fp32_precision") else "tf32" if matmul.allow_tf32 else "ieee"
    return "tf32" if setting == "tf32" else "ieee"


def products_setting() -> str:
    """PyTorch's setting for products of float32 matrices on an NVIDIA GPU: `tf32` or `ieee`."""
    return precision(torch.float32, "sm_80")


def floor_seconds(device: str, dtype: torch.dtype, flop: float, moved: float) -> float | None:
    """The least time, in seconds, for products and memory traffic on a device.

    Args:
        device: the name that `torch.cuda.get_device_name()` returns.
        dtype: dtype of the factors.
        flop: operations in matrix products.
        moved: bytes read and written.

    Returns:
        Seconds; None for a device that is not in `DEVICES`, and for float32 unless PyTorch multiplies it as tf32.
    """
    chip = DEVICES.get(device)
    if chip is None:
        return None
    floor = chip.floor(flop, moved, factor_kind(dtype, chip.architecture))
    return None if floor is None else floor.seconds

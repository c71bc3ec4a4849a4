"""Launch decisions: tiles for every architecture, splits of a sum, precision, and what a device computes natively.

Importing this module needs neither Triton nor a GPU.
"""

from dataclasses import dataclass, replace

import torch

INTERPRETER = "interpreter"


@dataclass(frozen=True)
class Tiles:
    """A tile [rows, cols] of the output, `depth` of the summed dimension a step, and who computes it."""

    rows: int
    cols: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Chip:
    """What a tile has to fit, and how many there should be."""

    shared: int  # bytes of shared memory that one program may have
    processors: int
    spare_stages: int  # stages that need no buffer of their own


# Vendors' figures. Hopper and the large Blackwell read operands from shared memory, so every stage has its buffer.
CHIPS = {
    "sm_80": Chip(shared=163 << 10, processors=108, spare_stages=1),
    "sm_86": Chip(shared=99 << 10, processors=84, spare_stages=1),
    "sm_90": Chip(shared=227 << 10, processors=132, spare_stages=0),
    "sm_100": Chip(shared=227 << 10, processors=148, spare_stages=0),
    "sm_120": Chip(shared=99 << 10, processors=170, spare_stages=1),
    "gfx90a": Chip(shared=64 << 10, processors=104, spare_stages=1),
    "gfx942": Chip(shared=64 << 10, processors=304, spare_stages=1),
    "default": Chip(shared=48 << 10, processors=64, spare_stages=0),
    INTERPRETER: Chip(shared=1 << 30, processors=1, spare_stages=0),
}
SAME_AS = {"sm_87": "sm_86", "sm_89": "sm_86", "sm_103": "sm_100", "sm_121": "sm_120", "gfx950": "gfx942"}

# Matrix products by operation and bytes of an element. Rows are pixels in `fwd` and `dgrad`, out channels in `wgrad`.
# Chosen by compiling for each target, the largest tile that spills nothing (docs/kernels.md); none has been timed.
WIDE = {
    ("fwd", 2): Tiles(128, 256, 64, 8, 3),
    ("dgrad", 2): Tiles(128, 256, 64, 8, 3),
    ("wgrad", 2): Tiles(128, 256, 64, 8, 3),
    ("fwd", 4): Tiles(128, 128, 32, 8, 3),
    ("dgrad", 4): Tiles(128, 128, 32, 8, 3),
    ("wgrad", 4): Tiles(128, 128, 32, 8, 3),
}
SQUARE = WIDE | {
    ("fwd", 2): Tiles(128, 128, 64, 8, 3),
    ("dgrad", 2): Tiles(128, 128, 64, 8, 3),
    ("wgrad", 2): Tiles(128, 128, 64, 8, 3),
}
SMALL = {(op, size): Tiles(64, 64, 32, 4, 2) for op in ("fwd", "dgrad", "wgrad") for size in (2, 4)}
TILES = {
    "sm_80": WIDE,
    "sm_86": SQUARE,
    "sm_90": WIDE,
    "sm_100": WIDE,
    "sm_120": SQUARE,
    "gfx90a": SQUARE,
    "gfx942": SQUARE,
    "default": SMALL,
    INTERPRETER: {key: Tiles(32, 32, 16, 4, 1) for key in SMALL},
}
# What a first run on a GPU tries beside the table's entry.
ALTERNATIVES = (
    Tiles(128, 256, 64, 8, 4),
    Tiles(128, 256, 32, 8, 4),
    Tiles(256, 128, 64, 8, 3),
    Tiles(128, 128, 64, 8, 3),
    Tiles(128, 128, 32, 4, 4),
    Tiles(64, 256, 64, 8, 3),
    Tiles(64, 128, 64, 4, 4),
)


def gemm_tiles(op: str, rows: int, cols: int, itemsize: int, architecture: str) -> Tiles:
    """The table's tiles for a product with a [rows, cols] result."""
    return narrowed(TILES[_family(architecture)][op, itemsize], rows, cols)


def gemm_candidates(op: str, rows: int, cols: int, itemsize: int, architecture: str) -> list[Tiles]:
    """At most eight tiles to try on an architecture, the table's first; those that cannot fit it are left out."""
    table = gemm_tiles(op, rows, cols, itemsize, architecture)
    others = (narrowed(tiles, rows, cols) for tiles in ALTERNATIVES)
    fitting = [tiles for tiles in others if fits(tiles, itemsize, architecture)]
    return list(dict.fromkeys([table, *fitting]))[:8]


def narrowed(tiles: Tiles, rows: int, cols: int) -> Tiles:
    """Tiles no larger than the result needs, and of the width that covers it with the least waste."""
    height = min(tiles.rows, max(16, _power_of_two(rows)))
    width = min(tiles.cols, max(16, _power_of_two(cols)))
    while width > 64 and _padded(cols, width // 2) < _padded(cols, width):
        width //= 2
    return replace(tiles, rows=height, cols=width, warps=min(tiles.warps, max(4, height * width // 2048)))


def fits(tiles: Tiles, itemsize: int, architecture: str) -> bool:
    """Whether operands fit an architecture's shared memory and sums its registers."""
    chip = CHIPS[_family(architecture)]
    buffers = max(1, tiles.stages - chip.spare_stages)
    operands = buffers * (tiles.rows + tiles.cols) * tiles.depth * itemsize
    sums_a_thread = tiles.rows * tiles.cols // (32 * tiles.warps)
    return operands <= chip.shared and sums_a_thread <= 128


def pixel_splits(programs: int, pixels: int, depth: int, architecture: str) -> int:
    """Into how many ranges a sum over pixels is split, so that two programs a processor are in flight."""
    wanted = _ceil_div(2 * CHIPS[_family(architecture)].processors, programs)
    return max(1, min(wanted, pixels // (8 * depth)))


def row_tiles(rows: int, cols: int) -> Tiles:
    """Tiles of whole rows, some 2048 elements each."""
    width = _power_of_two(cols)
    height = min(max(1, 2048 // width), _power_of_two(rows))
    return Tiles(height, width, 1, warps=4 if width <= 4096 else 8, stages=1)


def elementwise_tiles(channels: int) -> Tiles:
    """Pixels by channels of a pass over activations."""
    return Tiles(32, min(128, _power_of_two(channels)), 1, warps=4, stages=1)


def fourier_tiles(channels: int) -> Tiles:
    """Points by channels of the encoding."""
    return Tiles(16, min(128, _power_of_two(channels)), 1, warps=4, stages=1)


def embedding_tiles(channels: int) -> Tiles:
    """Points by channels that one cell gathers at a time: on the native grid it has four."""
    return Tiles(4, min(256, _power_of_two(channels)), 1, warps=4, stages=1)


def precision(dtype: torch.dtype, architecture: str) -> str:
    """How float32 factors are multiplied, `tf32` or `ieee`, as PyTorch is set for its own products on a GPU."""
    if dtype != torch.float32 or not architecture.startswith("sm_"):
        return "ieee"
    matmul = torch.backends.cuda.matmul
    # `fp32_precision` replaces `allow_tf32` in newer versions, which refuse to be asked for both.
    setting = matmul.fp32_precision if hasattr(matmul, "fp32_precision") else "tf32" if matmul.allow_tf32 else "ieee"
    return "tf32" if setting == "tf32" else "ieee"


def native_half(device: torch.device | str) -> torch.dtype | None:
    """The 16-bit dtype that a device multiplies natively; None where float32 is faster.

    bfloat16 before float16 where both are there: it needs no loss scaling.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind == "cpu" and cpu_multiplies_bfloat16():
        return torch.bfloat16
    return None


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has bfloat16 matrix instructions; PyTorch would emulate them elsewhere, at a loss."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _family(architecture: str) -> str:
    name = SAME_AS.get(architecture, architecture)
    return name if name in TILES else "default"


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _padded(n: int, tile: int) -> int:
    return _ceil_div(n, tile) * tile

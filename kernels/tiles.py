"""The tiles of every kernel for every architecture, and how work is split among programs.

`TABLES` has one table per architecture. The functions below it give the tiles for a problem. Importing this module
needs neither Triton nor a GPU.
"""

import sys
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from .chips import INTERPRETER, chip_of, factor_kind, family


@dataclass(frozen=True)
class Tiles:
    """The block [rows, cols] of the result that one program computes at a time, and how it does that."""

    rows: int
    cols: int
    depth: int  # how much of the summed dimension one iteration of the loop takes
    warps: int  # per program
    stages: int  # of the pipelined loop


# Matrix products: forward (`fwd`), gradient of the input (`dgrad`), gradient of the weights (`wgrad`). `_tap`: with an
# RGB tap, or with its gradient. `_end`: at the end of a residual block. `mixed`: forward with pixel styles. They have
# different tiles, because what the epilogue does decides which tiles spill.
OPERATIONS = ("fwd", "fwd_tap", "fwd_end", "fwd_end_tap", "mixed", "dgrad", "dgrad_tap", "dgrad_end", "wgrad")
# Tiles by operation and kind of factors. Rows are pixels; in `wgrad` they are out channels. The tiles are the largest
# ones that use no stack, for each target and each version of Triton in docs/kernels.md. None of them was timed.
TF32 = dict.fromkeys(OPERATIONS, Tiles(128, 128, 32, 8, 3)) | {"mixed": Tiles(64, 128, 32, 8, 3)}
IEEE = dict.fromkeys(OPERATIONS, Tiles(64, 64, 16, 8, 2)) | dict.fromkeys(
    ("dgrad", "dgrad_tap", "dgrad_end"), Tiles(32, 64, 16, 4, 2)
)
# On sm_80 and sm_90 with Triton 3.6, a depth of 64 leaves too few registers for some epilogues. Four stages of depth 32
# buffer as much as two stages of depth 64.
AMPERE = {
    ("fwd", "half"): Tiles(256, 128, 32, 8, 4),
    ("fwd_tap", "half"): Tiles(128, 256, 32, 8, 4),
    ("fwd_end", "half"): Tiles(128, 256, 32, 8, 4),
    ("fwd_end_tap", "half"): Tiles(128, 128, 64, 8, 3),
    ("mixed", "half"): Tiles(64, 128, 64, 8, 3),
    ("dgrad", "half"): Tiles(256, 128, 32, 8, 4),
    ("dgrad_tap", "half"): Tiles(256, 128, 32, 8, 4),
    ("dgrad_end", "half"): Tiles(128, 128, 64, 8, 3),
    ("wgrad", "half"): Tiles(128, 128, 32, 8, 4),
    **{(op, "tf32"): tiles for op, tiles in TF32.items()},
    **{(op, "ieee"): tiles for op, tiles in IEEE.items()},
}
HOPPER = AMPERE | {
    ("fwd", "half"): Tiles(128, 256, 64, 8, 3),
    ("fwd_tap", "half"): Tiles(128, 256, 64, 8, 3),
    ("dgrad", "half"): Tiles(128, 256, 64, 8, 3),
    ("dgrad_tap", "half"): Tiles(256, 128, 64, 8, 3),
    ("wgrad", "half"): Tiles(128, 256, 64, 8, 3),
}
SQUARE = AMPERE | {
    **{(op, "half"): Tiles(128, 128, 64, 8, 3) for op in OPERATIONS},
    ("mixed", "half"): Tiles(64, 128, 32, 8, 3),
}
BLACKWELL = SQUARE | {
    ("fwd", "half"): Tiles(128, 256, 64, 8, 3),
    ("fwd_end", "half"): Tiles(128, 256, 64, 8, 3),
    ("mixed", "half"): Tiles(64, 128, 64, 8, 3),
    ("wgrad", "half"): Tiles(128, 128, 32, 4, 4),
}
SMALL = {key: Tiles(64, 64, 32, 4, 2) if key[1] != "ieee" else Tiles(32, 64, 16, 4, 1) for key in AMPERE}
# A whole network in one launch: rows are pixels. Half of a tile's pixels are encoded at a time.
STACK = {"half": Tiles(128, 128, 64, 8, 3), "tf32": Tiles(128, 128, 32, 8, 3), "ieee": Tiles(64, 64, 16, 8, 2)}
STACK_AMD = {"half": Tiles(128, 128, 32, 8, 3), "ieee": Tiles(64, 64, 16, 8, 2)}
# The same with activations on chip: no layer is wider than a tile, and `depth` channels are encoded at a time. There is
# no entry for `ieee`, because these products take so long that the time for memory does not matter, and none for
# unknown chips.
NARROW = {"half": Tiles(128, 128, 16, 8, 2), "tf32": Tiles(64, 128, 16, 8, 2)}
NARROW_SMALL = NARROW | {"half": Tiles(64, 128, 16, 8, 2)}


@dataclass(frozen=True)
class Table:
    """The tiles of an architecture."""

    products: dict[tuple[str, str], Tiles]  # single layers, by operation and kind of factors
    stack: dict[str, Tiles]  # whole networks, by kind of factors
    narrow: dict[str, Tiles] = field(default_factory=dict)  # whole networks on chip, by kind of factors


SMALL_STACK = {"half": Tiles(64, 64, 32, 4, 2), "tf32": Tiles(64, 64, 32, 4, 2), "ieee": Tiles(32, 64, 16, 4, 1)}
TABLES = {
    "sm_80": Table(AMPERE, STACK, NARROW),
    "sm_86": Table(SQUARE | {("wgrad", "half"): Tiles(128, 128, 32, 8, 4)}, STACK, NARROW_SMALL),
    "sm_90": Table(HOPPER, STACK | {"half": Tiles(128, 256, 32, 8, 4)}, NARROW),
    "sm_100": Table(
        BLACKWELL,
        STACK | {"half": Tiles(128, 256, 64, 8, 3), "ieee": Tiles(64, 64, 16, 4, 2)},
        NARROW | {"half": Tiles(64, 128, 16, 4, 2)},
    ),
    "sm_120": Table(SQUARE | {("wgrad", "half"): Tiles(128, 128, 32, 8, 4)}, STACK, NARROW_SMALL),
    **dict.fromkeys(("gfx90a", "gfx942"), Table(SQUARE, STACK_AMD, {"half": NARROW["half"]})),
    "gfx1100": Table(SMALL, SMALL_STACK, {"half": Tiles(64, 128, 16, 8, 1)}),
    "default": Table(SMALL, SMALL_STACK),
    INTERPRETER: Table(
        dict.fromkeys(AMPERE, Tiles(64, 64, 32, 4, 1)),
        dict.fromkeys(STACK, Tiles(64, 64, 32, 4, 1)),
        dict.fromkeys(STACK, Tiles(64, 64, 16, 4, 1)),
    ),
}
# Tables for versions of Triton before the named one, where no tile avoids stack with all versions. These versions run
# out of scalar registers: they spill 2 to 6 of them in a pipelined stack kernel on gfx942, and 10 or 11 in a narrow one
# on gfx1100. On gfx1100 a layer with pixel styles uses 75 to 404 bytes of stack in two stages with Triton 3.6, and
# 1 byte in one stage with Triton 3.9.
STACK_AMD_UNPIPELINED = {"half": Tiles(128, 128, 32, 8, 1), "ieee": Tiles(64, 64, 16, 8, 1)}
SMALL_ONE_STAGE = SMALL | {("mixed", "half"): Tiles(64, 64, 32, 4, 1)}
TABLES_BEFORE = {
    **{name: ((3, 9), replace(TABLES[name], stack=STACK_AMD_UNPIPELINED)) for name in ("gfx90a", "gfx942")},
    "gfx1100": ((3, 8), Table(SMALL_ONE_STAGE, SMALL_STACK, {"half": Tiles(32, 64, 16, 8, 1)})),
    "default": ((3, 8), Table(SMALL_ONE_STAGE, SMALL_STACK)),
}
# Elements of a tile of whole rows: 16 per thread. One sample's 512² weights then are 128 programs.
ROW_ELEMENTS = 2048
# The tiles that a first run on a GPU measures in addition to the table's.
ALTERNATIVES = (
    Tiles(128, 256, 64, 8, 4),
    Tiles(128, 256, 32, 8, 4),
    Tiles(256, 128, 64, 8, 3),
    Tiles(128, 128, 64, 8, 3),
    Tiles(128, 128, 32, 4, 4),
    Tiles(64, 256, 64, 8, 3),
    Tiles(64, 128, 64, 4, 4),
)


def gemm_tiles(op: str, shape: tuple[int, int, int], dtype: torch.dtype, architecture: str) -> Tiles:
    """The table's tiles for a product of shape (rows, cols, depth): a [rows, cols] result, a sum over `depth`."""
    return narrowed(_table(architecture).products[op, factor_kind(dtype, architecture)], shape)


def gemm_candidates(op: str, shape: tuple[int, int, int], dtype: torch.dtype, architecture: str) -> list[Tiles]:
    """At most eight tiles to measure on an architecture: the table's first, then the alternatives that fit.

    `ieee` products run on ordinary arithmetic units, for which the alternatives are far too large.
    """
    table = gemm_tiles(op, shape, dtype, architecture)
    if factor_kind(dtype, architecture) == "ieee":
        return [table]
    others = (narrowed(tiles, shape) for tiles in ALTERNATIVES)
    fitting = [tiles for tiles in others if fits(tiles, dtype.itemsize, architecture)]
    return list(dict.fromkeys([table, *fitting]))[:8]


def narrowed(tiles: Tiles, shape: tuple[int, int, int]) -> Tiles:
    """The tiles, made no larger than the product, and halved in width while that covers the product with less waste."""
    rows, cols, depth = (min(tile, max(16, _power_of_two(n))) for tile, n in zip(_sizes(tiles), shape, strict=True))
    while cols > 64 and _padded(shape[1], cols // 2) < _padded(shape[1], cols):
        cols //= 2
    return replace(tiles, rows=rows, cols=cols, depth=depth, warps=min(tiles.warps, max(4, rows * cols // 512)))


def fits(tiles: Tiles, itemsize: int, architecture: str) -> bool:
    """Whether the operands fit an architecture's shared memory, and the sums its registers."""
    chip = chip_of(architecture)
    buffers = max(1, tiles.stages - chip.spare_stages)
    operands = buffers * (tiles.rows + tiles.cols) * tiles.depth * itemsize
    sums_a_thread = tiles.rows * tiles.cols // (32 * tiles.warps)
    return operands <= chip.program_shared and sums_a_thread <= 128


def stack_tiles(width: int, dtype: torch.dtype, architecture: str) -> Tiles:
    """The table's tiles for a whole network of at most `width` channels."""
    tiles = _table(architecture).stack[factor_kind(dtype, architecture)]
    return replace(tiles, cols=min(tiles.cols, max(16, _power_of_two(width))))


def narrow_tiles(width: int, dtype: torch.dtype, architecture: str) -> Tiles | None:
    """The table's tiles for a whole network on chip, of at most `width` channels; None if it does not fit there."""
    tiles = _table(architecture).narrow.get(factor_kind(dtype, architecture))
    return None if tiles is None or width > tiles.cols else replace(tiles, cols=max(32, _power_of_two(width)))


def programs_in_flight(items: int, architecture: str) -> int:
    """The number of programs that share `items` pieces of work: at most one per processor."""
    return min(items, chip_of(architecture).processors)


def stack_fits(pixels: int, width: int, dtype: torch.dtype, architecture: str) -> bool:
    """Whether a whole network in one launch keeps every processor busy, and its activations in L2, two per program."""
    tiles, chip = stack_tiles(width, dtype, architecture), chip_of(architecture)
    scratch = chip.processors * 2 * tiles.rows * width * dtype.itemsize
    return pixels >= chip.processors * tiles.rows and scratch <= chip.l2


def chunk_pixels(batch: int, channels: int, tensors: int, dtype: torch.dtype, architecture: str) -> int:
    """The pixels of each image in a chunk: as many as `tensors` tensors of them fit in two thirds of the L2.

    If these are few, the chunk is larger, so that every processor has a tile.
    """
    chip = chip_of(architecture)
    fitting = chip.l2 * 2 // 3 // (tensors * channels * dtype.itemsize)
    filling = chip.processors * 128
    return max(1, max(fitting, filling) // (256 * batch)) * 256


def pixel_splits(programs: int, pixels: int, depth: int, architecture: str) -> int:
    """The number of ranges that a sum over pixels is split into: one program per processor, each with enough pixels."""
    wanted = chip_of(architecture).processors // max(1, programs)
    return max(1, min(wanted, pixels // (8 * depth)))


def row_tiles(rows: int, cols: int) -> Tiles:
    """Tiles of whole rows of a [rows, cols] matrix."""
    width = _power_of_two(cols)
    height = min(max(1, ROW_ELEMENTS // width), _power_of_two(rows))
    return Tiles(height, width, 1, warps=4 if width <= 4096 else 8, stages=1)


def elementwise_tiles(channels: int) -> Tiles:
    """Tiles of pixels by channels for a pass over activations."""
    return Tiles(32, min(128, _power_of_two(channels)), 1, warps=4, stages=1)


def fourier_tiles(channels: int) -> Tiles:
    """Tiles of points by channels for the encoding."""
    return Tiles(16, min(128, _power_of_two(channels)), 1, warps=4, stages=1)


def embedding_tiles(channels: int) -> Tiles:
    """Tiles of points by channels that the program of a cell sums at a time; on the native grid a cell has four."""
    return Tiles(4, min(256, _power_of_two(channels)), 1, warps=4, stages=1)


@lru_cache
def triton_version() -> tuple[int, ...]:
    """Major and minor version of the installed Triton; if there is none, a version later than every other."""
    try:
        import triton
    except ImportError:
        return (sys.maxsize,)
    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def _table(architecture: str) -> Table:
    """The table of an architecture, for the installed version of Triton."""
    name = family(architecture)
    before, table = TABLES_BEFORE.get(name, ((0,), None))
    return table if triton_version() < before else TABLES[name]


def _sizes(tiles: Tiles) -> tuple[int, int, int]:
    return tiles.rows, tiles.cols, tiles.depth


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _padded(n: int, tile: int) -> int:
    return _ceil_div(n, tile) * tile

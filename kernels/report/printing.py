"""The report as tables for a terminal: totals of an image, a legend, and two tables of kernels per target."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..chips import Floor
from .disassembly import COLUMNS
from .per_image import Total
from .per_kernel import KernelReport

Cell = str | int | float | None
LEGEND = """
Columns of the tables of kernels:

launch                    channels in → out, or those of the encoding, and what else the kernel does
factors                   dtype of the factors in products; for kernels without products, that of the activations
tile                      block of the result per program, and how much of the sum per iteration (the constants BLOCK_…)
warps, stages             warps per program; stages of the pipelined loop
registers, stack B        32-bit registers and bytes of stack per thread; stack is where registers are spilled to
shared KiB                shared memory per program
programs, warps, limit    how many of them a processor holds, and which resource limits that
loop … other              instructions in the innermost loop that multiplies: all of them, then by kind
GFLOP                     operations in matrix products
MB once                   bytes moved if every operand is read once and every result is written once
MB requested              bytes that loads and stores ask for: a tile that several programs need counts several times
FLOP/B                    operations per byte that moves once
chip, µs                  least time on a chip, (a) bounded by arithmetic, (m) by memory that moves once
"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line. (kernels/ does not import `cips_fast.command_line`.)"""

    def error(self, message: str) -> NoReturn:
        """Print the message in one line, and end with status 2."""
        print(f"error: {message.removeprefix('argument ')}", file=sys.stderr)
        sys.exit(2)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"got {value!r}, must be one of {', '.join(action.choices)}")


def print_legend() -> None:
    """What the columns of `print_kernels` mean."""
    print(LEGEND)


def print_kernels(target: str, reports: Sequence[KernelReport]) -> None:
    """Two tables for a target: the resources of its kernels, and their work."""
    print(f"\n{target}: resources of the compiled kernels, and instructions of the innermost loop that multiplies.\n")
    heads = ["kernel", "launch", "factors", "tile", "warps", "stages", "registers", "stack B", "shared KiB"]
    heads += ["programs", "warps", "limit", "loop", *COLUMNS]
    print_table(heads, [_resources_row(r) for r in reports], text=5)
    chips = list(reports[0].floors)
    print(f"\n{target}: work of the kernels, and the least time for it: (a) bounded by arithmetic, (m) by memory.\n")
    heads = ["kernel", "launch", "factors", "GFLOP", "MB once", "MB requested", "FLOP/B", *(f"{c}, µs" for c in chips)]
    print_table(heads, [_work_row(r) for r in reports], text=3)


def print_totals(totals: Sequence[Total]) -> None:
    """For every chip, a table of the totals of an image."""
    for chip in dict.fromkeys(one.chip for one in totals):
        print(f"\nOne image on {chip}, 512 channels, bfloat16. GB: every operand and result of a launch moves once.")
        print("cached GB: what the last cache still holds from earlier launches. ms: the least time for all launches,")
        print("one after another, with all bytes from and to memory; then without the cached bytes.\n")
        heads = ["size", "way", "direction", "launches", "GFLOP", "GB", "cached GB", "ms", "ms, cached"]
        print_table(heads, [_total_row(one) for one in totals if one.chip == chip], text=3)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], text: int) -> None:
    """Print columns under their heads. The first `text` columns are aligned to the left, the others to the right."""
    lines = [list(heads), *([_shown(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    for line in lines:
        cells = (c.ljust(w) if i < text else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        print("  ".join(cells).rstrip())


def _resources_row(r: KernelReport) -> list[Cell]:
    tile = "×".join(map(str, r.tile))
    held = [None] * 3 if r.occupancy is None else list(r.occupancy)
    loop = [None] * (1 + len(COLUMNS)) if r.loop is None else [sum(r.loop.values()), *r.loop.values()]
    # The first five are text.
    return [
        r.kernel,
        r.launch,
        r.factors,
        tile,
        f"{r.warps}",
        r.stages,
        r.registers,
        r.stack,
        r.shared / 1024,
        *held,
        *loop,
    ]


def _work_row(r: KernelReport) -> list[Cell]:
    moved = {rule: (r.read[rule] + r.written[rule]) / 1e6 for rule in ("once", "requested")}
    floors = [_microseconds(floor) for floor in r.floors.values()]
    return [r.kernel, r.launch, r.factors, r.flop / 1e9, moved["once"], moved["requested"], r.intensity, *floors]


def _total_row(one: Total) -> list[Cell]:
    floors = (None if floor is None else floor * 1e3 for floor in (one.floor, one.floor_cached))
    counts = [one.launches, one.flop / 1e9, one.bytes / 1e9, one.cached / 1e9]
    return [f"{one.size}²", one.way, one.direction, *counts, *floors]


def _microseconds(floor: Floor | None) -> str | None:
    return floor and f"{_shown(floor.seconds * 1e6)} ({floor.bound[0]})"


def _shown(cell: Cell) -> str:
    """A cell as text: three digits of a float, all digits of a whole number."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 or cell == 0 else f"{cell:.3g}"
    return str(cell)

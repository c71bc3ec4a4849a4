"""The report as tables for a terminal."""

from collections.abc import Sequence

from ..chips import Floor
from .disassembly import COLUMNS
from .per_image import Total
from .per_kernel import KernelReport

Cell = str | int | float | None


def print_kernels(target: str, reports: Sequence[KernelReport]) -> None:
    """Two tables on a target: what its kernels take, and what they do."""
    print(f"\n{target}: what compiled kernels take. Instructions are those of the innermost loop that multiplies.\n")
    heads = ["kernel", "launch", "factors", "tile", "warps", "stages", "registers", "stack B", "shared KiB"]
    heads += ["programs", "warps", "limit", "loop", *COLUMNS]
    print_table(heads, [_resources_row(r) for r in reports], text=5)
    chips = list(reports[0].floors)
    print(f"\n{target}: what they do, and the time that it takes at least: (a) bound by arithmetic, (m) by memory.\n")
    heads = ["kernel", "launch", "factors", "GFLOP", "MB once", "MB requested", "FLOP/B", *(f"{c}, µs" for c in chips)]
    print_table(heads, [_work_row(r) for r in reports], text=3)


def print_totals(totals: Sequence[Total]) -> None:
    """For every chip a table of what an image costs."""
    for chip in dict.fromkeys(one.chip for one in totals):
        print(f"\nOne image on {chip}, 512 wide, bfloat16: bytes are every operand and result of a launch once, cached")
        print("what earlier launches left in the last cache, ms what launches one after another take at least.\n")
        heads = ["size", "way", "direction", "launches", "GFLOP", "GB", "cached GB", "ms", "ms, cached"]
        print_table(heads, [_total_row(one) for one in totals if one.chip == chip], text=3)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], text: int) -> None:
    """Columns under their heads, the first `text` of them to the left, numbers to the right."""
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
    """Three digits of a number, all of a whole one."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 or cell == 0 else f"{cell:.3g}"
    return str(cell)

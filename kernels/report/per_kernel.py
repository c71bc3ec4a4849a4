"""The report on one launch: the resources of the compiled kernel, its work, and the least time for that work."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ..chips import DATA_SHEETS, DTYPES, Chip, Floor
from ..device import Call
from .compile import Resources, compile_call, resources
from .cost import Cost, cost
from .disassembly import instruction_counts
from .ledger import products_kind
from .occupancy import Occupancy, occupancy
from .workload import code, launches


@dataclass(frozen=True)
class KernelReport:
    """One launch, compiled for a target."""

    target: str
    kernel: str
    launch: str  # channels in → out, or those of the encoding, and what else the kernel does
    factors: str  # dtype of the factors; for kernels without products, that of the activations
    tile: list[int]  # the constants BLOCK_…
    warps: int  # per program
    stages: int  # of the pipelined loop
    programs: int
    registers: int  # per thread
    stack: int  # bytes per thread, spills included
    shared: int  # bytes per program
    tensor_memory: int  # columns per program, sm_100
    occupancy: Occupancy | None  # None for a target without a data sheet in `chips`
    loop: dict[str, int] | None  # instructions by kind in the innermost loop that multiplies matrices
    flop: int  # in matrix products
    read: dict[str, int]  # bytes by rule, `once` or `requested`; see `cost`
    written: dict[str, int]  # bytes by rule
    intensity: float  # FLOP per byte that moves once
    floors: dict[str, Floor | None]  # the least time by chip


def kernel_reports(targets: Sequence[str], name: str = "") -> list[KernelReport]:
    """Reports on all launches of one image at 256², for kernels whose name contains `name`."""
    calls = {target: _distinct_launches(target, name) for target in targets}
    jobs = {(target, code(call, target)): (target, i) for target in targets for i, call in enumerate(calls[target])}
    compiled = _compile_all([(*job, name) for job in jobs.values()])
    used = dict(zip(jobs, compiled, strict=True))
    return [report_on(target, call, used[target, code(call, target)]) for target in targets for call in calls[target]]


def describe(call: Call) -> str:
    """A launch in a few words: channels, dimensions of the coordinates, and what else the kernel does."""
    a, constants = call.arguments, call.constants
    channels = f"{a['I']}→{a['O']}" if "I" in a else str(a.get("O", a.get("C", "")))
    extras = {
        f"{a.get('entries')} layers": "entries" in a,
        "tap": a.get("rgb_w_ptr") is not None,
        **{name: a.get(f"{name}_ptr") is not None for name in ("around", "below", "signs", "passed")},
        "shared": constants.get("SUM_B", False),
        "add": constants.get("ADD", False),
        f"{constants.get('J')} anchors": "J" in constants,
        f"{constants.get('D')}-D": "D" in constants,
    }
    return " ".join([channels, *(word for word, holds in extras.items() if holds)]).strip()


def factors_of(call: Call) -> str:
    """The dtype of a launch's factors, bf16, fp16, tf32 or fp32; for kernels without products, of the activations."""
    names = ("dz_ptr", "x_ptr", "dy_ptr", "dout_ptr", "out_ptr", "w_ptr", "dw_ptr", "table_coords_ptr")
    tensor = next(call.arguments[name] for name in names if call.arguments.get(name) is not None)
    return "tf32" if products_kind(call) == "tf32" else DTYPES[tensor.dtype].name


def _distinct_launches(target: str, name: str) -> list[Call]:
    """The first launch of each kernel, description and dtype, kernel by kernel."""
    named: dict[tuple[str, str, str], Call] = {}
    for call in launches(target, (1,)):
        if name in call.kernel.fn.__name__:
            named.setdefault((call.kernel.fn.__name__, describe(call), factors_of(call)), call)
    order = list(dict.fromkeys(kernel for kernel, *_ in named))
    return sorted(named.values(), key=lambda call: order.index(call.kernel.fn.__name__))


def _compile_all(jobs: list[tuple[str, int, str]]) -> list[Resources]:
    """Compile the jobs in as many processes as there are cores."""
    processes = min(os.cpu_count() or 1, len(jobs))
    if processes <= 1:
        return [_compile_one(job) for job in jobs]
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        results = pool.imap(_compile_one, jobs, chunksize=2)
        return list(tqdm(results, total=len(jobs), desc="compiling", unit="kernel", file=sys.stderr, leave=False))


def _compile_one(job: tuple[str, int, str]) -> Resources:
    target, index, name = job
    return resources(compile_call(_distinct_launches(target, name)[index], target))


def report_on(target: str, call: Call, used: Resources) -> KernelReport:
    """The report on a launch, from the resources of its compiled code."""
    moved, kind, chips = cost(call), products_kind(call), chips_of([target])
    return KernelReport(
        target=target,
        kernel=call.kernel.fn.__name__.removesuffix("_kernel"),
        launch=describe(call),
        factors=factors_of(call),
        tile=[value for name, value in call.constants.items() if name.startswith("BLOCK_")],
        warps=call.warps,
        stages=call.stages,
        programs=torch.Size(call.grid).numel(),
        registers=used.registers,
        stack=used.stack,
        shared=used.shared,
        tensor_memory=used.tensor_memory,
        occupancy=occupancy(chips[0], used, call.warps) if chips else None,
        loop=instruction_counts(used.loop) if used.loop else None,
        flop=moved.flop,
        read=_by_rule(moved, "loads"),
        written=_by_rule(moved, "stores"),
        intensity=moved.flop / moved.once,
        floors={chip.name: chip.floor(moved.flop, moved.once, kind) for chip in chips},
    )


def _by_rule(moved: Cost, direction: str) -> dict[str, int]:
    parts = getattr(moved, direction).values()
    return {rule: sum(getattr(part, rule) for part in parts) for rule in ("once", "requested")}


def chips_of(targets: Sequence[str]) -> list[Chip]:
    """The chips of these architectures that have a data sheet."""
    return [chip for chip in DATA_SHEETS if chip.architecture in targets]

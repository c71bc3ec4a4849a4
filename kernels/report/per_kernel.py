"""What a compiled kernel takes, what it does, and the least time for that on chips of its architecture."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ..chips import DATA_SHEETS, Chip, Floor
from ..device import Call
from .compile import Resources, compile_call, resources
from .cost import Cost, cost
from .disassembly import mix
from .ledger import products_kind
from .occupancy import Occupancy, occupancy
from .workload import code, launches


@dataclass(frozen=True)
class KernelReport:
    """One launch, compiled for a target. Bytes and floors are keyed by `once` or `requested`, and by chip."""

    target: str
    kernel: str
    launch: str  # channels in → out, or of the encoding, and what else the kernel does
    factors: str  # what is multiplied, or else the dtype of the activations
    tile: list[int]  # the constants BLOCK_…
    warps: int
    stages: int
    programs: int
    registers: int  # a thread
    stack: int  # bytes a thread, spills included
    shared: int  # bytes a program
    tensor_memory: int  # columns a program, sm_100
    occupancy: Occupancy | None  # None for a target of which no data sheet is at hand
    loop: dict[str, int] | None  # instructions by kind of the innermost loop that multiplies matrices
    flop: int  # in matrix products
    read: dict[str, int]
    written: dict[str, int]
    intensity: float  # FLOP a byte that moves once
    floors: dict[str, Floor | None]


def kernel_reports(targets: Sequence[str], name: str = "") -> list[KernelReport]:
    """Reports on all launches of one image at 256² of kernels whose name contains `name`."""
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
        f"{a.get('steps')} layers": "steps" in a,
        "tap": a.get("rgb_w_ptr") is not None,
        **{name: a.get(f"{name}_ptr") is not None for name in ("around", "below", "signs", "passed")},
        "shared": constants.get("SUM_B", False),
        "add": constants.get("ADD", False),
        f"{constants.get('J')} anchors": "J" in constants,
        f"{constants.get('D')}-D": "D" in constants,
    }
    return " ".join([channels, *(word for word, holds in extras.items() if holds)]).strip()


def factors_of(call: Call) -> str:
    """What a launch multiplies: bf16, fp16, tf32 or fp32; for kernels without products what activations they move."""
    names = ("dz_ptr", "x_ptr", "dy_ptr", "dout_ptr", "out_ptr", "w_ptr", "dw_ptr", "at_ptr")
    tensor = next(call.arguments[name] for name in names if call.arguments.get(name) is not None)
    short = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[tensor.dtype]
    return "tf32" if products_kind(call) == "tf32" else short


def _distinct_launches(target: str, name: str) -> list[Call]:
    """Launches that differ in what they are called below, the first of each, kernel by kernel."""
    named: dict[tuple[str, str, str], Call] = {}
    for call in launches(target, (1,)):
        if name in call.kernel.fn.__name__:
            named.setdefault((call.kernel.fn.__name__, describe(call), factors_of(call)), call)
    order = list(dict.fromkeys(kernel for kernel, *_ in named))
    return sorted(named.values(), key=lambda call: order.index(call.kernel.fn.__name__))


def _compile_all(jobs: list[tuple[str, int, str]]) -> list[Resources]:
    """In as many processes as there are cores."""
    processes = min(os.cpu_count() or 1, len(jobs))
    if processes <= 1:
        return [_compile_one(job) for job in jobs]
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        results = pool.imap(_compile_one, jobs, chunksize=2)
        return list(tqdm(results, total=len(jobs), desc="compiling", unit="kernel", file=sys.stderr, leave=False))


def _compile_one(job: tuple[str, int, str]) -> Resources:
    target, place, name = job
    return resources(compile_call(_distinct_launches(target, name)[place], target))


def report_on(target: str, call: Call, used: Resources) -> KernelReport:
    """The report on a launch, from what its code takes."""
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
        loop=mix(used.loop) if used.loop else None,
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
    """The chips of these architectures of which a data sheet is at hand."""
    return [chip for chip in DATA_SHEETS if chip.architecture in targets]

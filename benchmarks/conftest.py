"""What every benchmark shares: quick mode, the device, rates beside the times, and the race of contenders."""

import contextlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import pytest
import torch

from cips_fast.kernels.chips import floor_seconds, products_setting
from cips_fast.kernels.launch import native_half

from .problem import Problem

QUICK = bool(os.environ.get("CIPS_FAST_BENCH_QUICK"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CPU_PRECISIONS = ("fp32", "bf16") if native_half("cpu") == torch.bfloat16 else ("fp32",)
CONTENDERS = ("published", "eager", "compiled", "ours", *(("cpu",) if DEVICE == "cpu" else ()))


class Seen(NamedTuple):
    """What was measured of one contender."""

    median: float
    share_of_floor: float | None

    @property
    def beside_floor(self) -> str:
        return f" [{self.share_of_floor:.0%} of floor]" if self.share_of_floor else ""


SEEN = pytest.StashKey[dict[str, dict[str, Seen]]]()
MEMORY = pytest.StashKey[list[str]]()


def choose_cases(*, gpu: Sequence, cpu: Sequence, quick: Sequence) -> Sequence:
    """The cases that this run measures."""
    return quick if QUICK else gpu if DEVICE == "cuda" else cpu


@pytest.fixture
def timed(benchmark):
    """Time a call after a warm-up and note its rates: timed(call, flop), or timed(call, flop, moved, dtype)."""

    def run(call, flop, moved=0, dtype=torch.float32):
        def synchronised():
            result = call()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            return result

        rounds, warmup = (30, 5) if DEVICE == "cuda" else (2 if QUICK else 7, 1)
        result = benchmark.pedantic(synchronised, rounds=rounds, warmup_rounds=warmup)
        median, notes = benchmark.stats.stats.median, benchmark.extra_info
        if flop:
            notes["GFLOP/s"] = round(flop / median / 1e9, 1)
        if moved:
            notes["GB/s"] = round(moved / median / 1e9, 1)
        if DEVICE == "cpu":
            notes["threads"] = torch.get_num_threads()
        elif floor := floor_seconds(torch.cuda.get_device_name(), dtype, flop, moved):
            notes["share of floor"] = round(floor / median, 3)
        return result

    return run


@pytest.fixture
def race(timed, benchmark, request):
    """Check and time one contender on a problem, beside the others of its group: race(group, contender, problem, how).

    `how` has a function for every contender but `compiled`, which is `eager` compiled.
    """

    def run(group: str, contender: str, problem: Problem, how: Mapping[str, Callable]):
        if contender == "ours" and DEVICE != "cuda":
            pytest.skip("no GPU: Triton kernels need one")
        if contender == "compiled" and not shutil.which(os.environ.get("CXX", "g++")):
            pytest.skip("no C++ compiler: torch.compile needs one")
        function = how["eager"] if contender == "compiled" else how[contender]
        if contender == "compiled":
            torch._dynamo.reset()  # or else it gives up, silently, on a function that it has compiled for many shapes
            function = torch.compile(function, dynamic=False, fullgraph=True)
        inputs = problem.channels_first() if contender == "published" else problem.inputs
        benchmark.group = group
        with convolutions_at_their_best():
            solve = problem.solver(function, inputs)
            problem.check(solve())
            timed(solve, problem.products, problem.moved, problem.dtype)
        seen = request.config.stash.setdefault(SEEN, defaultdict(dict))
        seen[group][contender] = Seen(benchmark.stats.stats.median, benchmark.extra_info.get("share of floor"))

    return run


@contextlib.contextmanager
def convolutions_at_their_best():
    """Let cuDNN try its algorithms, and multiply float32 as PyTorch is set to for matrices: its own default is tf32."""
    cudnn, setting = torch.backends.cudnn, products_setting()
    newer = hasattr(getattr(cudnn, "conv", None), "fp32_precision")
    precision = (cudnn.conv, "fp32_precision", setting) if newer else (cudnn, "allow_tf32", setting == "tf32")
    wanted = [(cudnn, "benchmark", True), precision]
    before = [(holder, name, getattr(holder, name)) for holder, name, _ in wanted]
    for holder, name, value in wanted:
        setattr(holder, name, value)
    try:
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)


def pytest_terminal_summary(terminalreporter, config):
    """What every contender took, beside the published formulation; and memory."""
    for line in config.stash.get(MEMORY, []):
        terminalreporter.write_line(line)
    groups = {group: seen for group, seen in config.stash.get(SEEN, {}).items() if "published" in seen}
    if not groups:
        return
    terminalreporter.section("median times as multiples of the published formulation's")
    for group, seen in groups.items():
        published = seen["published"].median
        ratios = (f"{name} {one.median / published:.2f}{one.beside_floor}" for name, one in seen.items())
        terminalreporter.write_line(f"{group}: {', '.join(ratios)} ({published * 1e3:.2f} ms)")

"""Contenders side by side: each one's result is checked, then all take turns: what disturbs the machine disturbs all.

A group is one operation, in one direction, at one size and batch. Beside the contenders it measures the plain matrix
products that the operation cannot do without.
"""

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch._dynamo  # operators import it when they are first called, and that takes a second

from cips_fast.hardware import PRECISIONS as DTYPES
from cips_fast.hardware import native_half
from cips_fast.kernels.chips import floor_seconds, products_setting

from . import memory
from .gemm import Call, Gemm
from .problem import Problem

QUICK = bool(os.environ.get("CIPS_FAST_BENCH_QUICK"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = next((name for name, dtype in DTYPES.items() if dtype == native_half(DEVICE)), None)
PRECISIONS = ("fp32", HALF) if HALF else ("fp32",)
BACKEND = "triton" if DEVICE == "cuda" else "cpu"
COMPILING = 10.0 if DEVICE == "cpu" and not QUICK else 0.0  # seconds that torch.compile takes, about

DIRECTIONS = ("forward", "forward + backward")
GRID = [
    (direction, size, batch)
    for direction in DIRECTIONS
    for size, batch in ((64, 1), (64, 4), (128, 1), (128, 4), (256, 1), (256, 4))
]
HEADLINES = [("forward", 256, 1), ("forward + backward", 64, 4)]  # where these are raced however long they take:
PLAIN = ("published", "eager")


class Group(NamedTuple):
    """What is measured, with the names that a report sorts by."""

    op: str
    direction: str  # "forward" or "forward + backward"
    size: int  # a side, in pixels; 0 where there are none
    batch: int
    note: str = ""

    def __str__(self):
        size = f"{self.size}² B{self.batch}" if self.size else f"B{self.batch}"
        return " ".join(filter(None, (self.op, self.direction, size, self.note)))

    @property
    def backward(self) -> bool:
        return self.direction != "forward"


class Contender(NamedTuple):
    """A formulation in a precision."""

    formulation: str  # "published", "eager", "compiled" (eager, compiled) or "ours"
    precision: str

    def __str__(self):
        return f"{self.formulation} {self.precision}"


NATIVE = HALF or "fp32"
PUBLISHED, OURS = Contender("published", "fp32"), Contender("ours", NATIVE)
OTHERS = [Contender(formulation, NATIVE) for formulation in ("published", "eager", "compiled")]
LINEUP = tuple(dict.fromkeys([PUBLISHED, *OTHERS, OURS, Contender("ours", "fp32")]))


@dataclass
class Seen:
    """What was measured of a contender, and of the plain products in its precision."""

    seconds: list[float]
    peak: int | None  # bytes beyond what was in use
    gemm: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def share(self) -> float | None:
        """Time of the plain products, as a share of the contender's."""
        return statistics.median(self.gemm) / self.median if self.gemm else None


class Contest:
    """The contenders of one group.

    Args:
        group: what is measured.
        how: functions by formulation; `compiled` needs none.
        problem: the problem in a precision.
        lineup: who takes part.
    """

    def __init__(
        self,
        group: Group,
        how: Mapping[str, Callable],
        problem: Callable[[str], Problem],
        lineup: Sequence[Contender] = LINEUP,
    ):
        self.group, self.how, self.problem = group, how, problem
        self.seen: dict[Contender, Seen] = {}
        self.solvers: dict[Contender, Callable[[], list]] = {}
        self.lineup = [one for one in lineup if one.formulation != "compiled" or _can_compile()]

    @cached_property
    def gemms(self) -> dict[str, list[tuple[int, Call]]]:
        """The plain products in the precisions of all that were checked."""
        products = self.problem(OURS.precision).products
        precisions = {one.precision for one in self.seen} if products else ()
        gemms = {name: Gemm(products, DTYPES[name], DEVICE).calls() for name in precisions}
        for _, call in (one for calls in gemms.values() for one in calls):
            call()  # a library prepares a product of a new shape
        return gemms

    def check(self, contender: Contender) -> None:
        """Solve, compare, and measure memory.

        Raises:
            AssertionError: its result is further from float64 than twice plain PyTorch's.
        """
        problem, published = self.problem(contender.precision), contender.formulation == "published"
        compiled = contender.formulation == "compiled"
        function = self.how["eager" if compiled else contender.formulation]
        if compiled:
            torch._dynamo.reset()  # or it gives up, silently, on a function that it has compiled for many shapes
            function = torch.compile(function, dynamic=False, fullgraph=True)
        inputs = problem.channels_first() if published else problem.inputs
        seconds, found, peak = measured(problem.solver(function, inputs, problem.sparse_upstream))
        problem.check(found)
        del found
        solve = problem.solver(function, inputs, problem.upstream)
        if compiled or seconds < 0.1 or DEVICE == "cuda":  # else a first call is as good as the next
            seconds, _, peak = measured(solve)
        self.seen[contender] = Seen([seconds], peak)
        self.solvers[contender] = solve

    def seconds_of_a_turn(self) -> float:
        """What one round takes, about."""
        return sum(seen.seconds[0] * self._calls(one) for one, seen in self.seen.items())

    def take_turns(self) -> None:
        """One round of all that were checked, fast ones several times; `OURS` once less, for somebody else's clock."""
        self._multiply()
        for contender, solve in self.solvers.items():
            for _ in range(self._calls(contender) - (contender == OURS)):
                self.seen[contender].seconds.append(timed(solve)[0])
        self._multiply()

    def _multiply(self) -> None:
        """Time the plain products."""
        for precision, calls in self.gemms.items():
            seconds = sum(_seconds_of_products(count, call) for count, call in calls)
            for seen in (seen for one, seen in self.seen.items() if one.precision == precision):
                seen.gemm.append(seconds)

    def _calls(self, contender: Contender) -> int:
        slowest = max(seen.seconds[0] for seen in self.seen.values())
        return max(1, min(5, int(slowest / self.seen[contender].seconds[0] / 4)))

    def results(self) -> dict[str, dict[str, Any]]:
        """Figures by contender, with units in their names."""
        problem = self.problem(OURS.precision)
        figures = {}
        for contender, seen in self.seen.items():
            floor = None
            if DEVICE == "cuda":
                dtype = DTYPES[contender.precision]
                floor = floor_seconds(torch.cuda.get_device_name(), dtype, problem.flop, problem.moved)
            figures[str(contender)] = {
                "seconds": seen.median,
                "rounds": len(seen.seconds),
                "flop": problem.flop,
                "moved bytes": problem.moved,
                "GFLOP/s": problem.flop / seen.median / 1e9 if problem.flop else None,
                "share of GEMM": seen.share,
                "share of floor": floor / seen.median if floor else None,
                "peak bytes": seen.peak,
            }
        return figures


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result, when the device has it."""
    start = time.perf_counter()
    result = call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def measured(call: Callable[[], Any]) -> tuple[float, Any, int | None]:
    """Seconds, the result, and the peak of memory beyond what was in use, bytes, where it can be told."""
    in_use = memory.forget_peak() if memory.MEASURABLE else 0
    seconds, result = timed(call)
    return seconds, result, memory.peak() - in_use if memory.MEASURABLE else None


def _seconds_of_products(count: int, call: Callable[[], None]) -> float:
    """Of so many equal ones; on a CPU one stands for all, on a GPU they follow each other without a stop."""
    calls = count if DEVICE == "cuda" else 1
    return timed(lambda: [call() for _ in range(calls)])[0] * count / calls


def _can_compile() -> bool:
    return DEVICE == "cuda" or bool(shutil.which(os.environ.get("CXX", "g++")))


@contextlib.contextmanager
def convolutions_at_their_best() -> Iterator[None]:
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

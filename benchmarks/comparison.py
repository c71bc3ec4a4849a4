"""Compare contenders: check the result of each, then time all of them in turns, so that a disturbance hits all alike.

A group is one operation, in one direction, at one size and batch. Its matrix products alone are timed in the same
turns, as a measure of what the operation could reach.
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
import torch._dynamo  # imported here because operators import it at their first call, and that takes a second

from cips_fast.hardware import PRECISIONS as DTYPES
from cips_fast.hardware import native_half
from cips_fast.kernels.chips import floor_seconds, products_setting

from . import memory
from .gemm import Call, Gemm
from .operation import Operation

QUICK = bool(os.environ.get("CIPS_FAST_BENCH_QUICK"))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = next((name for name, dtype in DTYPES.items() if dtype == native_half(DEVICE)), None)
PRECISIONS = ("fp32", HALF) if HALF else ("fp32",)
BACKEND = "triton" if DEVICE == "cuda" else "cpu"
COMPILE_SECONDS = 10.0 if DEVICE == "cpu" and not QUICK else 0.0  # a typical torch.compile

DIRECTIONS = ("forward", "forward + backward")
GRID = [
    (direction, size, batch)
    for direction in DIRECTIONS
    for size, batch in ((64, 1), (64, 4), (128, 1), (128, 4), (256, 1), (256, 4))
]
HEADLINES = [("forward", 256, 1), ("forward + backward", 64, 4)]  # the figures that the README and the docs quote
PLAIN = ("published", "eager")  # the formulations that are measured in HEADLINES however long they take


class Group(NamedTuple):
    """What is measured. A report sorts by these fields."""

    op: str
    direction: str  # "forward" or "forward + backward"
    size: int  # side of the image in pixels; 0 if the operation has no pixels
    batch: int
    note: str = ""

    def __str__(self):
        size = f"{self.size}² B{self.batch}" if self.size else f"B{self.batch}"
        return " ".join(filter(None, (self.op, self.direction, size, self.note)))

    @property
    def backward(self) -> bool:
        return self.direction != "forward"


class Contender(NamedTuple):
    """A formulation and the precision that it runs in."""

    formulation: str  # "published", "eager", "compiled" (eager under torch.compile) or "ours"
    precision: str

    def __str__(self):
        return f"{self.formulation} {self.precision}"


NATIVE = HALF or "fp32"
PUBLISHED, OURS = Contender("published", "fp32"), Contender("ours", NATIVE)
OTHERS = [Contender(formulation, NATIVE) for formulation in ("published", "eager", "compiled")]
CONTENDERS = tuple(dict.fromkeys([PUBLISHED, *OTHERS, OURS, Contender("ours", "fp32")]))


@dataclass
class Measurement:
    """Times and memory of a contender, and times of the plain matrix products in its precision."""

    seconds: list[float]
    peak: int | None  # bytes beyond what was in use before the call; None if it cannot be measured
    gemm: list[float] = field(default_factory=list)  # seconds of the plain matrix products

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def share(self) -> float | None:
        """Time of the plain matrix products as a share of the contender's time."""
        return statistics.median(self.gemm) / self.median if self.gemm else None


class Comparison:
    """The contenders of one group, and what was measured of them.

    Args:
        group: what is measured.
        functions: the function of each formulation; `compiled` needs none, since it compiles `eager`.
        operation: gives the operation in a precision, by the precision's name.
        contenders: the contenders to measure; compiled ones only where there is a compiler.
    """

    def __init__(
        self,
        group: Group,
        functions: Mapping[str, Callable],
        operation: Callable[[str], Operation],
        contenders: Sequence[Contender] = CONTENDERS,
    ):
        self.group, self.functions, self.operation = group, functions, operation
        self.measured: dict[Contender, Measurement] = {}
        self.runners: dict[Contender, Callable[[], list]] = {}
        self.contenders = [one for one in contenders if one.formulation != "compiled" or _can_compile()]

    @cached_property
    def gemms(self) -> dict[str, list[tuple[int, Call]]]:
        """The plain matrix products, by precision, for every contender that was checked."""
        products = self.operation(OURS.precision).products
        precisions = {one.precision for one in self.measured} if products else ()
        gemms = {name: Gemm(products, DTYPES[name], DEVICE).calls() for name in precisions}
        for _, call in (one for calls in gemms.values() for one in calls):
            call()  # warm-up: libraries prepare for a product of a new shape
        return gemms

    def check(self, contender: Contender) -> None:
        """Run a contender, compare its results with float64 formulas, and measure its memory.

        Raises:
            AssertionError: an error is more than twice that of plain PyTorch.
        """
        operation, published = self.operation(contender.precision), contender.formulation == "published"
        compiled = contender.formulation == "compiled"
        function = self.functions["eager" if compiled else contender.formulation]
        if compiled:
            torch._dynamo.reset()  # without it, dynamo silently stops compiling a function after several shapes
            function = torch.compile(function, dynamic=False, fullgraph=True)
        inputs = operation.channels_first() if published else operation.inputs
        seconds, results, peak = measured(operation.runner(function, inputs, operation.sparse_upstream))
        operation.check(results)
        del results
        run = operation.runner(function, inputs, operation.upstream)
        if compiled or seconds < 0.1 or DEVICE == "cuda":  # otherwise a first call takes as long as the next
            seconds, _, peak = measured(run)
        self.measured[contender] = Measurement([seconds], peak)
        self.runners[contender] = run

    def seconds_of_a_turn(self) -> float:
        """About how long one round of all contenders takes."""
        return sum(found.seconds[0] * self._calls_a_turn(one) for one, found in self.measured.items())

    def take_turns(self) -> None:
        """Time one round of all checked contenders, fast ones several times.

        `OURS` runs once less, because pytest-benchmark times that call.
        """
        self._time_products()
        for contender, run in self.runners.items():
            calls = self._calls_a_turn(contender) - (1 if contender == OURS else 0)
            for _ in range(calls):
                self.measured[contender].seconds.append(timed(run)[0])
        self._time_products()

    def _time_products(self) -> None:
        """Time the plain matrix products once in every precision."""
        for precision, calls in self.gemms.items():
            seconds = sum(_seconds_of_products(count, call) for count, call in calls)
            for contender, found in self.measured.items():
                if contender.precision == precision:
                    found.gemm.append(seconds)

    def _calls_a_turn(self, contender: Contender) -> int:
        """1 to 5: contenders that are much faster than the slowest one run several times in each turn."""
        slowest = max(found.seconds[0] for found in self.measured.values())
        return max(1, min(5, int(slowest / self.measured[contender].seconds[0] / 4)))

    def results(self) -> dict[str, dict[str, Any]]:
        """The figures of each contender, with units in their names."""
        operation = self.operation(OURS.precision)
        figures = {}
        for contender, found in self.measured.items():
            floor = None
            if DEVICE == "cuda":
                dtype = DTYPES[contender.precision]
                floor = floor_seconds(torch.cuda.get_device_name(), dtype, operation.flop, operation.moved)
            figures[str(contender)] = {
                "seconds": found.median,
                "rounds": len(found.seconds),
                "flop": operation.flop,
                "moved bytes": operation.moved,
                "GFLOP/s": operation.flop / found.median / 1e9 if operation.flop else None,
                "share of GEMM": found.share,
                "share of floor": floor / found.median if floor else None,
                "peak bytes": found.peak,
            }
        return figures


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds until the device has the result, and the result."""
    start = time.perf_counter()
    result = call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def measured(call: Callable[[], Any]) -> tuple[float, Any, int | None]:
    """Seconds, the result, and the peak of memory in bytes beyond what was in use; None if it cannot be measured."""
    in_use = memory.forget_peak() if memory.MEASURABLE else 0
    seconds, result = timed(call)
    return seconds, result, memory.peak() - in_use if memory.MEASURABLE else None


def _seconds_of_products(count: int, call: Callable[[], None]) -> float:
    """Seconds of `count` equal products: on a CPU one is timed and multiplied, on a GPU all run without a stop."""
    calls = count if DEVICE == "cuda" else 1
    return timed(lambda: [call() for _ in range(calls)])[0] * count / calls


def _can_compile() -> bool:
    return DEVICE == "cuda" or bool(shutil.which(os.environ.get("CXX", "g++")))


@contextlib.contextmanager
def convolutions_at_their_best() -> Iterator[None]:
    """Let cuDNN try all its algorithms, and multiply float32 as PyTorch is set to for matrices.

    cuDNN's default for float32 is tf32.
    """
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

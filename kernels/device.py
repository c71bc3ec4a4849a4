"""The one function that launches kernels, `run`: on a GPU, in Triton's interpreter, or on a stand-in for a GPU.

A stand-in receives every launch instead of Triton's runtime. With it, the code that serves a GPU can be recorded,
compiled ahead of time for a named architecture, or emulated. Importing this module needs neither Triton nor a GPU.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from .chips import INTERPRETER
from .tiles import Tiles, triton_version

Argument = Tensor | int | float | None
# Texts in the messages of CUDA and HIP for a kernel that needs more resources than the GPU has. Triton raises them all
# as RuntimeError.
RESOURCE_ERROR_TEXTS = ("out of memory", "too many resources", "out of resources")


@dataclass(frozen=True)
class Call:
    """One launch of a kernel: everything that is needed to start it, to compile it or to emulate it."""

    kernel: Any  # triton.JITFunction
    grid: tuple[int, ...]
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Any]
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, Any]:
        """Triton's compiler options."""
        # Set here, because newer versions of Triton have another default for contracting products and sums.
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


class StandIn(Protocol):
    """An object that acts as a GPU of an architecture, such as `sm_90`."""

    architecture: str

    def execute(self, call: Call) -> None: ...


_stand_in: StandIn | None = None  # of all threads, unlike `_trial`: threads of `backends.threads` use it, too


@contextlib.contextmanager
def standing_in(device: StandIn) -> Iterator[StandIn]:
    """Until the context ends, pass every launch of every thread to `device`, whatever the device of the tensors."""
    global _stand_in
    before, _stand_in = _stand_in, device
    try:
        yield device
    finally:
        _stand_in = before


class Refused(Exception):
    """The compiler or the GPU refused a launch on trial, or its kernel uses stack."""


# Whether launches on trial may use stack; None if launches are not on trial. Each thread has its own value, so the
# launches of other threads are not on trial.
_trial: ContextVar[bool | None] = ContextVar("trial", default=None)


@contextlib.contextmanager
def on_trial(*, stack: bool) -> Iterator[None]:
    """Until the context ends, a launch on a GPU raises `Refused` if the compiler or the GPU refuses it.

    Args:
        stack: accept kernels that use stack, which is where registers are spilled to.
    """
    token = _trial.set(stack)
    try:
        yield
    finally:
        _trial.reset(token)


def run(
    kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Argument], constants: Mapping[str, Any], tiles: Tiles
) -> None:
    """Start a kernel on the device of its tensors."""
    if 0 in grid:
        return
    call = Call(kernel, grid, arguments, constants, tiles.warps, tiles.stages)
    if _stand_in is not None:
        _stand_in.execute(call)
        return
    if interpreted() and (reason := interpreter_refusal()):
        raise RuntimeError(f"TRITON_INTERPRET=1: {reason}")
    tensor = next(value for value in call.arguments.values() if isinstance(value, Tensor))
    stack_accepted = _trial.get()
    with torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext():
        if stack_accepted is None:
            call.kernel[call.grid](**call.arguments, **call.constants, **call.options)
        else:
            _try(call, stack_accepted)


def _try(call: Call, stack_accepted: bool) -> None:
    """Start a kernel, or raise `Refused`. Errors that concern neither the compiler nor resources are raised as is."""
    from triton.errors import TritonError

    given = {**call.arguments, **call.constants, **call.options}
    try:
        # `warmup` only compiles, so these errors are the compiler's: TritonError from Triton, RuntimeError from the
        # passes of MLIR and LLVM, ValueError and IndexError from C++, AssertionError from the backends.
        call.kernel.warmup(grid=call.grid, **given)
    except (TritonError, RuntimeError, ValueError, IndexError, AssertionError) as error:
        raise Refused(f"not compiled: {error}") from error
    try:
        compiled = call.kernel[call.grid](**given)
    except TritonError as error:  # OutOfResources: Triton checks the limits when it loads the kernel
        raise Refused(str(error)) from error
    except RuntimeError as error:
        if any(text in str(error) for text in RESOURCE_ERROR_TEXTS):
            raise Refused(str(error)) from error
        raise
    # Triton counts the bytes of stack in words of four.
    if compiled.n_spills and not stack_accepted:
        raise Refused(f"{4 * compiled.n_spills} bytes of stack")


def can_run_on(device: torch.device) -> bool:
    """Whether kernels can be started for tensors on the device."""
    return device.type == "cuda" or _stand_in is not None or interpreted()


def is_gpu(device: torch.device) -> bool:
    """Whether a launch for tensors on the device goes to a real GPU."""
    return device.type == "cuda" and _stand_in is None and not interpreted()


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on tensors of any device."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@lru_cache
def interpreter_refusal() -> str | None:
    """Why Triton's interpreter cannot run loops with the installed NumPy; None if it can."""
    import numpy
    import triton

    if triton_version() >= (3, 7) or tuple(map(int, numpy.__version__.split(".")[:2])) < (2, 4):
        return None
    installed = f"Triton {triton.__version__} with NumPy {numpy.__version__}"
    return f"got {installed}, must be Triton 3.7 or later, or NumPy before 2.4"


def architecture(device: torch.device) -> str:
    """Name of the architecture that runs kernels for a device: `sm_90`, `gfx942`, or `interpreter`."""
    if _stand_in is not None:
        return _stand_in.architecture
    return INTERPRETER if interpreted() else _gpu_architecture(device.index or 0)


@lru_cache
def _gpu_architecture(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def dense_rows(t: Tensor) -> Tensor:
    """The tensor with a dense last dimension; a copy only if its last dimension is not dense."""
    return t if t.stride(-1) == 1 else t.contiguous()

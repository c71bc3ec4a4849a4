"""Which backend computes an operation on given tensors.

- `triton`: the kernels, for tensors on a GPU, or on any device with TRITON_INTERPRET=1, in bfloat16, float16 or
  float32.
- `cpu`: the same maths arranged for CPU tensors.
- `reference`: the eager specification, for any device and dtype.
- `auto`: the first of these that serves the tensors.

A backend that is asked for by name is used, or an error says why it cannot be.
"""

import importlib.util
import logging

import torch
from torch.autograd import forward_ad

from ..checks import ArgumentError, check_choice
from ..kernels.device import can_run_on
from . import cpu_layer

BACKENDS = ("auto", "triton", "cpu", "reference")
TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TRITON_DIMENSIONS = (2, 3)  # of the coordinates that its encoding takes

_log = logging.getLogger("cips_fast")
_have_triton = importlib.util.find_spec("triton") is not None
_told: set[tuple[str, str]] = set()


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend that `backend` stands for, for tensors of a device and a dtype.

    Raises:
        ValueError: an unknown backend, or one that does not serve that device.
        TypeError: a backend that does not take that dtype.
        ImportError: `triton` was asked for and is not installed.
        NotImplementedError: `triton` was asked for inside a function transform.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "auto":
        kernels = device.type == "cuda" and _have_triton and dtype in TRITON_DTYPES and not transformed()
        chosen = "triton" if kernels else "cpu" if device.type == "cpu" else "reference"
        if not torch.compiler.is_compiling():
            _tell_once(f"tensors on {device.type}", chosen)
        return chosen
    if backend == "cpu" and device.type != "cpu":
        raise ArgumentError("backend", f"got 'cpu' for tensors on {device}, may be 'auto' or 'reference' there")
    if backend == "triton":
        if not _have_triton:
            raise ImportError("backend: got 'triton', which is not installed; may be 'auto', 'cpu' or 'reference'")
        if not can_run_on(device):
            raise ArgumentError(
                "backend",
                f"got 'triton' for tensors on {device}, which takes a GPU, or TRITON_INTERPRET=1 set "
                "before Python starts; may be 'auto', 'cpu' or 'reference'",
            )
        if dtype not in TRITON_DTYPES:
            raise TypeError(f"dtype: got {dtype}, backend 'triton' takes bfloat16, float16 or float32")
        if transformed():
            raise NotImplementedError(
                "backend: got 'triton' inside torch.func's transforms or forward-mode differentiation, which its "
                "operators do not take; may be 'auto' or 'reference'"
            )
    return backend


def resolve_encoding_backend(backend: str, device: torch.device, dtype: torch.dtype, dimensions: int) -> str:
    """The backend that encodes coordinates: that of `resolve_backend`, except where the kernels do not take them.

    There `auto` is `reference`, while `auto` for the layers stays `triton`.

    Raises:
        ValueError: `triton` was asked for and does not take so many dimensions; and all errors of `resolve_backend`.
    """
    chosen = resolve_backend(backend, device, dtype)
    if chosen != "triton" or dimensions in TRITON_DIMENSIONS:
        return chosen
    if backend == "triton":
        raise ArgumentError("freq", f"got {dimensions} coordinate dimensions, backend 'triton' takes 2 or 3")
    if not torch.compiler.is_compiling():
        _tell_once(f"encoding {dimensions} coordinate dimensions on {device.type}", "reference")
    return "reference"


def transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work: operators would refuse, or drop the tangent."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_one_operator(backend: str, dtype: torch.dtype) -> bool:
    """Whether the backend has fused operators; the CPU's formulas take every dtype and transform, one by one."""
    return backend == "triton" or (backend == "cpu" and dtype in cpu_layer.DTYPES and not transformed())


def _tell_once(purpose: str, chosen: str) -> None:
    if (purpose, chosen) not in _told:
        _told.add((purpose, chosen))
        _log.info("backend 'auto' is %r for %s", chosen, purpose)

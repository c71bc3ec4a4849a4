"""Which backend computes an operation on given tensors.

- `triton`: the kernels, for tensors on a GPU, or on any device with TRITON_INTERPRET=1, in bfloat16, float16 or
  float32.
- `cpu`: the same formulas arranged for CPU tensors.
- `reference`: the specification in eager PyTorch, for any device and dtype.
- `auto`: the first of these that can take the tensors.

A backend that the caller names is used, or an error says why it cannot be used.
"""

import importlib.util
import logging

import torch

from ..checks import ArgumentError, check_choice
from ..kernels.chips import DTYPES as TRITON_DTYPES
from ..kernels.device import can_run_on
from . import cpu_layer
from .torch_private import in_transform

BACKENDS = ("auto", "triton", "cpu", "reference")
TRITON_DIMENSIONS = (2, 3)  # of the coordinates that the kernels encode

_log = logging.getLogger("cips_fast")
_have_triton = importlib.util.find_spec("triton") is not None
_logged: set[tuple[str, str]] = set()


def resolve_backend(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """The backend to use for tensors of a device and a dtype.

    Raises:
        ValueError: `backend` is unknown, or it does not take tensors on that device.
        TypeError: the backend does not take that dtype.
        ImportError: `backend` is `triton`, which is not installed.
        NotImplementedError: `backend` is `triton`, inside a function transform.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "auto":
        kernels = device.type == "cuda" and _have_triton and dtype in TRITON_DTYPES and not in_transform()
        chosen = "triton" if kernels else "cpu" if device.type == "cpu" else "reference"
        if not torch.compiler.is_compiling():
            _log_once(f"tensors on {device.type}", chosen)
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
            *names, last = (str(each).removeprefix("torch.") for each in TRITON_DTYPES)
            raise TypeError(f"dtype: got {dtype}, backend 'triton' takes {', '.join(names)} or {last}")
        if in_transform():
            raise NotImplementedError(
                "backend: got 'triton' inside torch.func's transforms or forward-mode differentiation, which its "
                "operators do not take; may be 'auto' or 'reference'"
            )
    return backend


def resolve_encoding_backend(backend: str, device: torch.device, dtype: torch.dtype, dimensions: int) -> str:
    """The backend that encodes coordinates: that of `resolve_backend`, unless the kernels do not take the dimensions.

    In that case `auto` is `reference` for the encoding, while it stays `triton` for the layers.

    Raises:
        ValueError: `triton` was asked for and does not take this number of dimensions; and all errors of
            `resolve_backend`.
    """
    chosen = resolve_backend(backend, device, dtype)
    if chosen != "triton" or dimensions in TRITON_DIMENSIONS:
        return chosen
    if backend == "triton":
        raise ArgumentError("freq", f"got {dimensions} coordinate dimensions, backend 'triton' takes 2 or 3")
    if not torch.compiler.is_compiling():
        _log_once(f"encoding {dimensions} coordinate dimensions on {device.type}", "reference")
    return "reference"


def is_one_operator(backend: str, dtype: torch.dtype) -> bool:
    """Whether the backend computes a layer or a network of this dtype by one fused operator.

    `cpu` does so for `cpu_layer.DTYPES` outside of function transforms, in which an operator would raise an error or
    lose the tangent. Otherwise `cpu` is made of PyTorch's operations, for every dtype and transform.
    """
    return backend == "triton" or (backend == "cpu" and dtype in cpu_layer.DTYPES and not in_transform())


def _log_once(purpose: str, chosen: str) -> None:
    if (purpose, chosen) not in _logged:
        _logged.add((purpose, chosen))
        _log.info("backend 'auto' is %r for %s", chosen, purpose)

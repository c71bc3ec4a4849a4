"""Autocast, for operations that decide themselves which tensors are rounded."""

import contextlib

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast uses for products with x; None if autocast is off, and for float64."""
    kind = x.device.type
    enabled = _has_autocast(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled and x.dtype != torch.float64 else None


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """A context in which autocast is off for x's device."""
    kind = x.device.type
    if not _has_autocast(kind):
        return contextlib.nullcontext()
    # Switching autocast takes longer than a small operation, so it is switched only if it is on. A graph that is being
    # compiled may run under autocast later, so there it is always switched.
    enabled = torch.is_autocast_enabled(kind) or torch.compiler.is_compiling()
    return torch.autocast(kind, enabled=False) if enabled else contextlib.nullcontext()


def _has_autocast(kind: str) -> bool:
    """Whether devices of this kind support autocast."""
    if torch.compiler.is_compiling():
        # Dynamo of PyTorch 2.11 cannot trace `is_autocast_available`. Of the devices that it compiles for, only `meta`
        # has no autocast.
        return kind != "meta"
    return torch.amp.is_autocast_available(kind)

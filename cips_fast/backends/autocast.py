"""Autocast, for operations that decide for themselves what is rounded."""

import contextlib

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype to which autocast brings products with x; None outside of it and for float64."""
    kind = x.device.type
    enabled = _has_autocast(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if enabled and x.dtype != torch.float64 else None


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """A context in which nothing on x's device is rounded to autocast's dtype."""
    kind = x.device.type
    if not _has_autocast(kind):
        return contextlib.nullcontext()
    # To switch autocast takes longer than a small operation; a captured graph may run under autocast later.
    enabled = torch.is_autocast_enabled(kind) or torch.compiler.is_compiling()
    return torch.autocast(kind, enabled=False) if enabled else contextlib.nullcontext()


def _has_autocast(kind: str) -> bool:
    """Whether devices of this kind know autocast at all."""
    if torch.compiler.is_compiling():
        # Dynamo of PyTorch 2.11 cannot trace the question. Of the devices that it compiles for, one has no autocast.
        return kind != "meta"
    return torch.amp.is_autocast_available(kind)

"""Finding numbers that are not finite, at the end of a step and before a state is saved."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

NAMES_SHOWN = 3


class NotFinite(ArithmeticError):
    """Tensors of a step or of a state are not finite; the message names them.

    Attributes:
        names: names of all that are not finite.
        losses: the step's losses and scores as numbers, by name; empty for a state.
    """

    def __init__(self, names: list[str], losses: Mapping[str, float] | None = None) -> None:
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        super().__init__(f"not finite: {', '.join(names[:NAMES_SHOWN])}{more}")
        self.names = names
        self.losses = dict(losses or {})


@torch.no_grad()
def probably_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether the norms of floating-point tensors on one device are finite. Waits for the device only once.

    True means that every element is finite. False can also mean that a norm is too large for its dtype.
    """
    return bool(torch.stack(torch._foreach_norm(list(tensors))).isfinite().all())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that have an element that is not finite. Scalars are named with their value."""
    bad = [(name, t) for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    return [f"{name} ({t.item():g})" if t.dim() == 0 else name for name, t in bad]

"""Numbers that are not finite: found within the step, and never saved."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

NAMED = 3


class NotFinite(ArithmeticError):
    """Something of a step, or of a state, is not finite; the message names it.

    Attributes:
        names: all that is not finite.
        losses: losses and scores of the step as numbers, by name; empty for a state.
    """

    def __init__(self, names: list[str], losses: Mapping[str, float] | None = None) -> None:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        super().__init__(f"not finite: {', '.join(names[:NAMED])}{more}")
        self.names = names
        self.losses = dict(losses or {})


@torch.no_grad()
def probably_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether the norms of floating-point tensors of one device are finite: one wait for the device in all.

    True means that every element is finite. False may also mean that a norm is too large for its dtype.
    """
    return bool(torch.stack(torch._foreach_norm(list(tensors))).isfinite().all())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors with an element that is not finite; a number is added to the names of scalars."""
    bad = [(name, t) for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()]
    return [f"{name} ({t.item():g})" if t.dim() == 0 else name for name, t in bad]

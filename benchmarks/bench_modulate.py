"""Modulated weights, forward and forward + backward: published, eager and compiled PyTorch against this project.

There is almost no arithmetic, so memory traffic is the limit.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch

from cips_fast import functional
from cips_fast import reference as ref
from cips_fast.kernels.report import published_formulation

from .comparison import BACKEND, DEVICE, DIRECTIONS, DTYPES, PRECISIONS, QUICK, Group
from .operation import Operation


class Case(NamedTuple):
    direction: str
    batch: int
    width: int = 512

    @property
    def group(self):
        return Group("modulate", self.direction, 0, self.batch)

    def __str__(self):
        return str(self.group)


CASES = [Case(direction, batch) for direction in DIRECTIONS for batch in (1, 4, 16)]
if QUICK:
    CASES = [Case(direction, 2, 128) for direction in DIRECTIONS]
FORMULATIONS = {
    "published": published_formulation.modulate,
    "eager": ref.modulate_ref,
    "ours": partial(functional.modulate, backend=BACKEND),
}


@lru_cache(maxsize=len(PRECISIONS))
def operation(case, precision):
    """Weights and styles in this precision."""
    rng = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape):
        values = torch.randn(*shape, generator=rng, device=DEVICE, dtype=torch.float32)
        return values.to(DTYPES[precision]).requires_grad_()

    return Operation(
        reference=ref.modulate_ref,
        inputs={"weight": draw(case.width, case.width), "style": draw(case.batch, case.width)},
        options={"demodulate": True},
        dtype=DTYPES[precision],
        backward=case.group.backward,
        batched=("style",),
        saved=("weight", "style"),
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_modulate(compare, case):
    compare(case.group, FORMULATIONS, partial(operation, case))

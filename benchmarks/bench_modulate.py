"""Modulated weights, forward and forward + backward: published, eager and compiled PyTorch against this project.

Next to no arithmetic: memory traffic is what they can be measured by.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch

from cips_fast import functional
from cips_fast import reference as ref
from cips_fast.kernels.report import published_formulation

from .contest import BACKEND, DEVICE, DIRECTIONS, DTYPES, PRECISIONS, QUICK, Group
from .problem import Problem


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
HOW = {
    "published": published_formulation.modulate,
    "eager": ref.modulate_ref,
    "ours": partial(functional.modulate, backend=BACKEND),
}


@lru_cache(maxsize=len(PRECISIONS))
def problem(case, precision):
    """Weights and styles in that precision."""
    rng = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape):
        values = torch.randn(*shape, generator=rng, device=DEVICE, dtype=torch.float32)
        return values.to(DTYPES[precision]).requires_grad_()

    return Problem(
        reference=ref.modulate_ref,
        inputs={"weight": draw(case.width, case.width), "style": draw(case.batch, case.width)},
        options={"demodulate": True},
        dtype=DTYPES[precision],
        backward=case.group.backward,
        batched=("style",),
        saved=("weight", "style"),
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_modulate(race, case):
    race(case.group, HOW, partial(problem, case))

"""Modulated weights, forward and forward + backward: published, eager and compiled PyTorch against this project.

Next to no arithmetic: memory traffic is what they can be measured by.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch

from cips_fast import functional
from cips_fast import reference as ref
from cips_fast.kernels import published

from .conftest import CONTENDERS, DEVICE, DTYPES, choose_cases
from .problem import Problem


class Case(NamedTuple):
    batch: int
    width: int
    precision: str

    def __str__(self):
        return f"{self.width}->{self.width} B{self.batch} {self.precision}"


GPU_CASES = [Case(batch, 512, precision) for precision in ("bf16", "fp32") for batch in (1, 4, 16)]
CPU_CASES = [Case(batch, 512, "fp32") for batch in (4, 16)]
CASES = choose_cases(gpu=GPU_CASES, cpu=CPU_CASES, quick=[Case(2, 128, "fp32")])
HOW = {
    "published": published.modulate,
    "eager": ref.modulate_ref,
    "ours": partial(functional.modulate, backend="triton"),
    "cpu": partial(functional.modulate, backend="cpu"),
}


@lru_cache(maxsize=1)
def problem(case, backward):
    """Weights and styles in the case's dtype."""
    rng = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape):
        values = torch.randn(*shape, generator=rng, device=DEVICE, dtype=torch.float32)
        return values.to(DTYPES[case.precision]).requires_grad_()

    return Problem(
        reference=ref.modulate_ref,
        inputs={"weight": draw(case.width, case.width), "style": draw(case.batch, case.width)},
        options={"demodulate": True},
        dtype=DTYPES[case.precision],
        backward=backward,
        batched=("style",),
        saved=("weight", "style"),
    )


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_modulate(race, case, direction, contender):
    race(f"modulate {direction} {case}", contender, problem(case, direction == "backward"), HOW)

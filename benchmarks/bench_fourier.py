"""Encoding of coordinates, forward and forward + backward: published, eager and compiled PyTorch against this project.

Waves and a learned table in one result. Next to no arithmetic: memory traffic is what they can be measured by.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch

from cips_fast import functional
from cips_fast import reference as ref
from cips_fast.kernels import published

from .conftest import CONTENDERS, CPU_PRECISIONS, DEVICE, DTYPES, choose_cases
from .problem import Problem


class Case(NamedTuple):
    batch: int
    pixels: int
    channels: int
    cells: int
    precision: str

    def __str__(self):
        return f"C{self.channels} P{self.pixels} cells{self.cells} B{self.batch} {self.precision}"


GPU_CASES = [Case(batch, 65536, 512, 256, precision) for precision in ("bf16", "fp32") for batch in (1, 4)]
CPU_CASES = [Case(batch, 4096, 512, 64, precision) for batch in (1, 4) for precision in CPU_PRECISIONS]
CASES = choose_cases(gpu=GPU_CASES, cpu=CPU_CASES, quick=[Case(1, 1024, 64, 32, "fp32")])


def eager_fourier_encode(coords, freq, phase, table, *, align_corners, dtype):
    """The reference formulas, in the precision of the coordinates, joined in the result's."""
    waves = ref.fourier_encode_ref(coords, freq, phase)
    return torch.cat([waves, ref.embed_coords_ref(coords, table, align_corners)], -1).to(dtype)


HOW = {
    "published": published.fourier_encode,
    "eager": eager_fourier_encode,
    "ours": partial(functional.fourier_encode, backend="triton"),
    "cpu": partial(functional.fourier_encode, backend="cpu"),
}


@lru_cache(maxsize=1)
def problem(case, backward):
    """Every image at points of its own; the result in the case's dtype, all else in float32."""
    rng = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=rng, device=DEVICE, requires_grad=True)

    return Problem(
        reference=eager_fourier_encode,
        inputs={
            "coords": torch.rand(case.batch, case.pixels, 2, generator=rng, device=DEVICE) * 2 - 1,
            "freq": draw(case.channels, 2),
            "phase": draw(case.channels),
            "table": draw(case.cells, case.cells, case.channels),
        },
        options={"align_corners": False, "dtype": DTYPES[case.precision]},
        dtype=DTYPES[case.precision],
        backward=backward,
        batched=("coords",),
        channel_dim={"coords": 1, "table": 0},
        saved=("coords", "freq", "phase"),
    )


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fourier_encode(race, case, direction, contender):
    race(f"fourier_encode {direction} {case}", contender, problem(case, direction == "backward"), HOW)

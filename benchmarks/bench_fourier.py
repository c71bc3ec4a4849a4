"""Encoding of coordinates, forward and forward + backward: published, eager and compiled PyTorch against this project.

Sines and the embedding table's features, in one result. There is almost no arithmetic, so memory traffic is the limit.
"""

from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch

from cips_fast import functional
from cips_fast import reference as ref
from cips_fast.kernels.report import published_formulation

from .comparison import BACKEND, DEVICE, DIRECTIONS, DTYPES, GRID, HEADLINES, PLAIN, PRECISIONS, QUICK, Group
from .operation import Operation


class Case(NamedTuple):
    direction: str
    size: int
    batch: int
    channels: int = 512
    cells: int = 64  # per side of the embedding table

    @property
    def group(self):
        return Group("fourier_encode", self.direction, self.size, self.batch)

    def __str__(self):
        return str(self.group)


CASES = [Case(direction, 16, 2, 64) for direction in DIRECTIONS] if QUICK else [Case(*grid) for grid in GRID]


def eager_fourier_encode(coords, freq, phase, table, *, align_corners, dtype):
    """The reference formulas in the precision of the coordinates; the result is in `dtype`."""
    waves = ref.fourier_encode_ref(coords, freq, phase)
    return torch.cat([waves, ref.embed_coords_ref(coords, table, align_corners)], -1).to(dtype)


FORMULATIONS = {
    "published": published_formulation.fourier_encode,
    "eager": eager_fourier_encode,
    "ours": partial(functional.fourier_encode, backend=BACKEND),
}


@lru_cache(maxsize=len(PRECISIONS))
def operation(case, precision):
    """Different points for every image. The result has this precision, everything else is float32."""
    rng = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=rng, device=DEVICE, requires_grad=True)

    return Operation(
        reference=eager_fourier_encode,
        inputs={
            "coords": torch.rand(case.batch, case.size**2, 2, generator=rng, device=DEVICE) * 2 - 1,
            "freq": draw(case.channels, 2),
            "phase": draw(case.channels),
            "table": draw(case.cells, case.cells, case.channels),
        },
        options={"align_corners": False, "dtype": DTYPES[precision]},
        dtype=DTYPES[precision],
        backward=case.group.backward,
        batched=("coords",),
        pixelwise=("coords",),
        channel_dim={"coords": 1, "table": 0},
        saved=("coords", "freq", "phase"),
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fourier_encode(compare, case):
    compare(case.group, FORMULATIONS, partial(operation, case), always=PLAIN if case[:3] in HEADLINES else ())

"""One ModFC layer, forward and forward + backward: published, eager and compiled PyTorch against this project."""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from cips_fast import functional
from cips_fast import reference as ref
from cips_fast.kernels.report import published_formulation

from .comparison import BACKEND, DEVICE, DIRECTIONS, DTYPES, GRID, HEADLINES, PLAIN, PRECISIONS, QUICK, Group
from .gemm import layer_products
from .operation import Operation


class Case(NamedTuple):
    direction: str
    size: int
    batch: int
    inputs: int = 512
    outputs: int = 512

    @property
    def group(self):
        note = "" if self.inputs == self.outputs == 512 else f"{self.inputs}->{self.outputs}"
        return Group("mod_fc", self.direction, self.size, self.batch, note)

    def __str__(self):
        return str(self.group)


OTHER_WIDTHS = ((512, 256), (256, 128), (128, 64), (512, 3))
CASES = [
    *(Case(*grid) for grid in GRID),
    *(Case(direction, 256, 4, *widths) for direction in DIRECTIONS for widths in OTHER_WIDTHS if DEVICE == "cuda"),
]
if QUICK:
    CASES = [Case(direction, 16, 1, 128, 128) for direction in DIRECTIONS]


def eager_mod_fc(x, weight, style, bias, *, demodulate, activation):
    """Plain PyTorch at its best: one batched product, with the gain in the modulated weights, then the activation."""
    gain = math.sqrt(2) if activation == "lrelu" else 1.0
    w = ref.modulate_ref(weight, style, demodulate) * gain
    y = torch.baddbmm(bias * gain, x, w.mT)
    return F.leaky_relu(y, ref.LRELU_SLOPE) if activation == "lrelu" else y


FORMULATIONS = {
    "published": published_formulation.mod_fc,
    "eager": eager_mod_fc,
    "ours": partial(functional.mod_fc, backend=BACKEND),
}


@lru_cache(maxsize=len(PRECISIONS))
def operation(case, precision):
    """x in this precision, parameters in float32. Three outputs are colours: neither demodulated nor activated."""
    rng, dtype = torch.Generator(DEVICE).manual_seed(0), DTYPES[precision]

    def draw(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=rng, device=DEVICE, dtype=torch.float32).to(dtype).requires_grad_()

    colours, pixels, backward = case.outputs == 3, case.size**2, case.group.backward
    return Operation(
        reference=ref.mod_fc_ref,
        inputs={
            "x": draw(case.batch, pixels, case.inputs, dtype=dtype),
            "weight": draw(case.outputs, case.inputs),
            "style": draw(case.batch, case.inputs),
            "bias": draw(case.outputs),
        },
        options={"demodulate": not colours, "activation": "linear" if colours else "lrelu"},
        dtype=dtype,
        backward=backward,
        batched=("x", "style"),
        pixelwise=("x",),
        autocast=True,
        channel_dim={"x": 1},
        saved=("x", "weight", "style"),
        products=layer_products(case.batch, pixels, case.inputs, case.outputs, backward=backward),
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mod_fc(compare, case):
    compare(case.group, FORMULATIONS, partial(operation, case), always=PLAIN if case[:3] in HEADLINES else ())

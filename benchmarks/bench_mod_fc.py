"""One ModFC layer, forward and forward + backward: published, eager and compiled PyTorch against this project."""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from cips_fast import functional
from cips_fast import reference as ref
from cips_fast.kernels import published

from .conftest import CONTENDERS, CPU_PRECISIONS, DEVICE, DTYPES, choose_cases
from .problem import Problem


class Case(NamedTuple):
    batch: int
    pixels: int
    inputs: int
    outputs: int
    precision: str

    def __str__(self):
        return f"{self.inputs}->{self.outputs} P{self.pixels} B{self.batch} {self.precision}"


GPU_CASES = [
    *(Case(batch, 65536, 512, 512, "bf16") for batch in (1, 4, 16)),
    Case(4, 65536, 512, 512, "fp32"),
    Case(4, 65536, 512, 256, "fp16"),
    Case(4, 65536, 256, 128, "bf16"),
    Case(4, 65536, 128, 64, "bf16"),
    Case(4, 65536, 512, 3, "bf16"),
]
CPU_CASES = [Case(batch, 4096, 512, 512, precision) for batch in (1, 4) for precision in CPU_PRECISIONS]
CASES = choose_cases(gpu=GPU_CASES, cpu=CPU_CASES, quick=[Case(1, 1024, 128, 128, "fp32")])


def eager_mod_fc(x, weight, style, bias, *, demodulate, activation):
    """Plain PyTorch at its best: one batched product with modulated weights, the gain in them, and the activation."""
    gain = math.sqrt(2) if activation == "lrelu" else 1.0
    w = ref.modulate_ref(weight, style, demodulate) * gain
    y = torch.baddbmm(bias * gain, x, w.mT)
    return F.leaky_relu(y, ref.LRELU_SLOPE) if activation == "lrelu" else y


HOW = {
    "published": published.mod_fc,
    "eager": eager_mod_fc,
    "ours": partial(functional.mod_fc, backend="triton"),
    "cpu": partial(functional.mod_fc, backend="cpu"),
}


@lru_cache(maxsize=1)
def problem(case, backward):
    """x in the case's dtype, parameters in float32; three outputs are colours: not demodulated, not activated."""
    rng = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape, dtype=torch.float32):
        return torch.randn(*shape, generator=rng, device=DEVICE, dtype=torch.float32).to(dtype).requires_grad_()

    colours = case.outputs == 3
    return Problem(
        reference=ref.mod_fc_ref,
        inputs={
            "x": draw(case.batch, case.pixels, case.inputs, dtype=DTYPES[case.precision]),
            "weight": draw(case.outputs, case.inputs),
            "style": draw(case.batch, case.inputs),
            "bias": draw(case.outputs),
        },
        options={"demodulate": not colours, "activation": "linear" if colours else "lrelu"},
        dtype=DTYPES[case.precision],
        backward=backward,
        batched=("x", "style"),
        autocast=True,
        channel_dim={"x": 1},
        saved=("x", "weight", "style"),
        flop=2 * case.batch * case.pixels * case.inputs * case.outputs,
    )


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_mod_fc(race, case, direction, contender):
    race(f"mod_fc {direction} {case}", contender, problem(case, direction == "backward"), HOW)

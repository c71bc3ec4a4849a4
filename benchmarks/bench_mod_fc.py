"""One ModFC layer, forward and forward + backward: the eager formula against the chosen backend."""

import pytest
import torch

from cips_fast import functional
from cips_fast.kernels.launch import native_half

from .conftest import QUICK

WIDTH = 128 if QUICK else 512
PIXELS = 4096
DTYPES = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if native_half("cpu") == torch.bfloat16 else {})


def inputs(batch):
    rng = torch.Generator().manual_seed(0)
    shapes = [(batch, PIXELS, WIDTH), (WIDTH, WIDTH), (batch, WIDTH), (WIDTH,)]
    return [torch.randn(*shape, generator=rng, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_mod_fc(timed, benchmark, backend, precision, direction):
    benchmark.group = f"mod_fc {direction} {PIXELS} pixels, width {WIDTH}"
    tensors = inputs(batch=1)
    dtype = DTYPES[precision]

    def call():
        with (
            torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
            torch.set_grad_enabled(direction == "backward"),
        ):
            y = functional.mod_fc(*tensors, backend=backend)
        if direction == "backward":
            return torch.autograd.grad(y, tensors, torch.ones_like(y))[0]
        return y

    passes = 3 if direction == "backward" else 1
    result = timed(call, passes * 2 * PIXELS * WIDTH**2)
    assert torch.isfinite(result).all()

"""A whole image: the eager formulas in float32 against the chosen backend, correctness first."""

import pytest
import torch

from cips_fast import CIPSGenerator
from cips_fast.kernels.launch import native_half

from .conftest import QUICK

SIZE = 32 if QUICK else 128
BF16 = native_half("cpu") == torch.bfloat16
CONTENDERS = [("reference", "fp32"), ("auto", "fp32"), *([("reference", "bf16"), ("auto", "bf16")] if BF16 else [])]


def make(backend):
    torch.manual_seed(0)
    return CIPSGenerator(SIZE, backend=backend).eval()


@pytest.mark.parametrize(("backend", "precision"), CONTENDERS)
def test_sampling(timed, benchmark, backend, precision):
    benchmark.group = f"sampling {SIZE}², width 512"
    generator = make(backend)
    z = torch.randn(1, 512, generator=torch.Generator().manual_seed(1))

    def sample():
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            return generator(z)

    with torch.no_grad():
        wanted = make("reference")(z)
    error = (sample() - wanted).norm() / wanted.norm()
    assert error < (1e-5 if precision == "fp32" else 5e-2)
    weights = sum(layer.weight.numel() for layer in [*generator.layers, *generator.to_rgb])
    timed(sample, 2 * SIZE**2 * weights)

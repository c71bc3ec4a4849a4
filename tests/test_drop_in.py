"""ModFC in other people's models: compiled, exported, copied, distributed, under autocast, on kernels or on the CPU."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cips_fast import FourierEncoding, ModFC
from cips_fast.kernels.device import standing_in

# Compiling for a CPU takes a C++ compiler; without one the graph is captured all the same.
COMPILER = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"


@pytest.fixture(params=["cpu", "triton"])
def backend(request):
    if request.param != "triton":
        yield request.param
        return
    with standing_in(request.getfixturevalue("interpreter")):
        yield request.param


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.manual_seed(0)
    torch._dynamo.reset()


class Field(nn.Module):
    """Coordinates and a latent to two values."""

    def __init__(self, backend):
        super().__init__()
        self.encoding = FourierEncoding(6, 4, backend=backend)
        self.hidden = ModFC(12, 10, 8, backend=backend)
        self.out = ModFC(10, 2, 8, demodulate=False, activation="linear", backend=backend)

    def forward(self, coords, latent):
        return self.out(self.hidden(self.encoding(coords), latent), latent)


def gradients(model, *inputs):
    model.zero_grad()
    y = model(*inputs)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in model.parameters())]


INPUTS = (torch.rand(1, 9, 2, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, 16).view(2, 8))


def assert_equal(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_compiles_whole(backend):
    model = Field(backend)
    wanted = gradients(model, *INPUTS)
    assert_equal(gradients(torch.compile(model, fullgraph=True, backend=COMPILER), *INPUTS), wanted)


def test_compiles_whole_for_any_number_of_pixels(backend):
    model = Field(backend)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for pixels in (3, 9, 70):
        coords = torch.rand(2, pixels, 2)
        assert_equal(gradients(compiled, coords, INPUTS[1]), gradients(model, coords, INPUTS[1]))


def test_compiles_whole_under_autocast(backend):
    model = Field(backend)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.float16):
        wanted = gradients(model, *INPUTS)
        got = gradients(compiled, *INPUTS)
    assert got[0].dtype == torch.float16
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_exports(backend):
    model = Field(backend).eval()
    pixels = torch.export.Dim("pixels", min=2, max=4096)
    program = torch.export.export(model, INPUTS, dynamic_shapes=({1: pixels}, None))
    coords = torch.rand(1, 33, 2)
    torch.testing.assert_close(program.module()(coords, INPUTS[1]), model(coords, INPUTS[1]), rtol=1e-5, atol=1e-6)


def test_keeps_leading_dimensions(backend):
    layer = ModFC(6, 4, 8, backend=backend)
    x, latent = torch.randn(2, 3, 5, 6), torch.randn(2, 8)
    assert layer(x, latent).shape == (2, 3, 5, 4)
    torch.testing.assert_close(layer(x, latent)[:, 1, 2], layer(x[:, 1, 2], latent), rtol=1e-5, atol=1e-6)
    assert layer(x[:1], latent).shape == (2, 3, 5, 4)  # shared by the batch


def test_copies_and_state_dicts_hold_the_same_layer(backend):
    model = Field(backend)
    wanted = gradients(model, *INPUTS)
    assert_equal(gradients(copy.deepcopy(model), *INPUTS), wanted)
    other = Field(backend)
    other.load_state_dict(model.state_dict())
    assert_equal(gradients(other, *INPUTS), wanted)


def test_functional_call_differentiates_given_parameters(backend):
    model = Field(backend)
    wanted = gradients(model, *INPUTS)
    given = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    y = torch.func.functional_call(model, given, INPUTS)
    assert_equal([y.detach(), *torch.autograd.grad(y.square().sum(), list(given.values()))], wanted)


def test_trains_under_distributed_data_parallel(backend, tmp_path):
    model = Field(backend)
    wanted = gradients(model, *INPUTS)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert_equal(gradients(nn.parallel.DistributedDataParallel(model), *INPUTS), wanted)
    finally:
        torch.distributed.destroy_process_group()


def run_python(code, **environment):
    """A fresh process in the checkout."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | environment,
        timeout=120,
    )


def test_interpreter_is_asked_for_by_triton_s_own_variable():
    code = """if True:
        import torch
        from cips_fast import CIPSGenerator
        torch.manual_seed(0)
        generator = CIPSGenerator(8, width=16, style_features=8, backend="triton")
        z = torch.randn(2, 8)
        images = generator(z)
        images.sum().backward()
        for module in generator.modules():
            if hasattr(module, "backend"):
                module.backend = "reference"
        torch.testing.assert_close(images, generator(z), rtol=1e-5, atol=1e-5)
        print(images.shape)
    """
    run = run_python(code, TRITON_INTERPRET="1")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "torch.Size([2, 3, 8, 8])"


def test_everything_else_works_without_triton():
    code = """if True:
        import sys
        sys.modules["triton"] = None  # what an import finds where it is not installed
        import importlib.util
        importlib.util.find_spec = lambda name, find=importlib.util.find_spec: None if name == "triton" else find(name)
        import torch
        from cips_fast import CIPSGenerator, ModFC
        CIPSGenerator(8, width=16)(torch.randn(1, 512)).sum().backward()
        try:
            ModFC(4, 4, 4, backend="triton")(torch.randn(1, 2, 4), torch.randn(1, 4))
        except ImportError as error:
            print(error)
    """
    run = run_python(code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "backend: got 'triton', which is not installed; may be 'auto', 'cpu' or 'reference'"

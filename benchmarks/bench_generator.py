"""A whole generator: forward, forward + backward, and the memory that training takes with and without `pixel_chunk`.

Published, eager and compiled PyTorch against this project, correctness first. The network is the paper's: coordinates,
encoding, ModFC layers of one width and RGB taps, all but the mapping.
"""

import math
import re
import subprocess
import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from cips_fast import reference as ref
from cips_fast.kernels import published
from cips_fast.kernels.network import Network
from cips_fast.synthesis import synthesis

from .bench_fourier import eager_fourier_encode
from .bench_mod_fc import eager_mod_fc
from .conftest import CONTENDERS, CPU_PRECISIONS, DEVICE, DTYPES, MEMORY, QUICK, choose_cases
from .problem import Problem


class Case(NamedTuple):
    size: int
    batch: int
    width: int
    precision: str

    def __str__(self):
        return f"{self.size}² width {self.width} B{self.batch} {self.precision}"

    @property
    def layers(self):
        return 2 * int(math.log2(self.size)) - 1


GPU_CASES = [Case(size, batch, 512, "bf16") for size, batch in ((256, 1), (256, 4), (512, 1))]
CPU_CASES = [Case(64, 1, 512, precision) for precision in CPU_PRECISIONS]
CASES = choose_cases(gpu=GPU_CASES, cpu=CPU_CASES, quick=[Case(8, 2, 32, "fp32")])


def network_of(case, tensors):
    return Network.from_tensors(tensors, case.layers, False, True)


def draw_tensors(case):
    """Parameters as a generator has them at its start, float32, in a network's order."""
    rng = torch.Generator(DEVICE).manual_seed(0)
    outputs, width = case.layers // 2, case.width
    inputs = [2 * width, *[width] * (case.layers - 1)]
    shapes = [(width, 2), (width,), (case.size, case.size, width), *((width, i) for i in inputs)]
    shapes += [(width,)] * case.layers + [(case.batch, i) for i in inputs]
    shapes += [(3, width)] * outputs + [(3,)] * outputs + [(case.batch, width)] * outputs
    return [torch.randn(shape, generator=rng, device=DEVICE, requires_grad=True) for shape in shapes]


def on_network(function, case):
    """The function of a network and coordinates as one of coordinates and tensors by name."""

    def call(coords, **tensors):
        return function(network_of(case, list(tensors.values())), coords)

    return call


def eager(network, coords, *, dtype):
    """Plain PyTorch at its best: `bench_mod_fc.eager_mod_fc` layer after layer."""
    encoding = (network.freq, network.phase, network.table)
    x = eager_fourier_encode(coords, *encoding, align_corners=True, dtype=dtype).expand(network.batch, -1, -1)
    taps = iter(zip(network.tap_weights, network.tap_styles, network.tap_biases, strict=True))
    rgb = 0
    for place, layer in enumerate(zip(network.weights, network.styles, network.biases, strict=True)):
        x = eager_mod_fc(x, *layer, demodulate=True, activation="lrelu")
        if place in network.tapped:
            rgb = rgb + eager_mod_fc(x, *next(taps), demodulate=False, activation="linear").float()
    return rgb


def contenders(case):
    dtype = DTYPES[case.precision]
    functions = {
        "published": partial(published.render, dtype=dtype),
        "eager": partial(eager, dtype=dtype),
        "ours": partial(synthesis, backend="triton"),
        "cpu": partial(synthesis, backend="cpu"),
    }
    return {name: on_network(function, case) for name, function in functions.items()}


@lru_cache(maxsize=1)
def problem(case, backward):
    """The native grid, shared by the batch."""
    side = torch.linspace(-1, 1, case.size, device=DEVICE)
    coords = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).view(1, -1, 2)
    tensors = {f"tensor {index}": tensor for index, tensor in enumerate(draw_tensors(case))}
    styles = [f"tensor {index}" for index, tensor in enumerate(tensors.values()) if _is_style(case, index)]
    weights = sum(t.numel() for t in network_of(case, list(tensors.values())).weights) + 3 * case.width * (
        case.layers // 2
    )
    return Problem(
        reference=lambda coords, **tensors: ref.synthesis_ref(network_of(case, list(tensors.values())), coords),
        inputs={"coords": coords, **tensors},
        options={},
        dtype=DTYPES[case.precision],
        backward=backward,
        batched=tuple(styles),
        autocast=True,
        saved=tuple(tensors),
        flop=2 * case.batch * case.size**2 * weights,
    )


def _is_style(case, index):
    """Whether a network's tensor of this place is a style, which every image has its own of."""
    layers, taps = case.layers, case.layers // 2
    after = 3 + 3 * layers
    return after - layers <= index < after or index >= after + 2 * taps


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_generator(race, case, direction, contender):
    race(f"generator {direction} {case}", contender, problem(case, direction == "backward"), contenders(case))


MEMORY_CASE = Case(8, 1, 32, "fp32") if QUICK else Case(256, 1, 512, CPU_PRECISIONS[-1] if DEVICE == "cpu" else "bf16")
CHUNK = MEMORY_CASE.size**2 // 16


@pytest.mark.skipif(DEVICE == "cpu" and not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak")
@pytest.mark.parametrize("pixel_chunk", [None, CHUNK], ids=["all kept", f"chunks of {CHUNK}"])
def test_memory_of_training(benchmark, request, pixel_chunk):
    """Peak memory of forward and backward, beyond parameters and gradients, in a process of its own; timed whole."""
    benchmark.group = f"memory of training, {MEMORY_CASE}"
    command = [sys.executable, "-m", "benchmarks.bench_generator", str(pixel_chunk or 0)]
    done = benchmark.pedantic(
        subprocess.run, (command,), {"capture_output": True, "text": True, "check": True}, rounds=1
    )
    peak = benchmark.extra_info["peak MiB"] = round(float(done.stdout.split()[-1]), 1)
    how = "all activations kept" if pixel_chunk is None else f"chunks of {CHUNK}"
    line = f"{benchmark.group}: {peak} MiB, {how}"
    request.config.stash.setdefault(MEMORY, []).append(line)


def forget_peak():
    """Begin to measure the peak anew; return the memory in use, MiB."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak():
    """Most memory in use since, MiB."""
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else _status("VmHWM")


def _status(name):
    (kibibytes,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kibibytes) / 1024


def main(pixel_chunk):
    """Print the peak memory of forward and backward less what parameters, gradients and PyTorch itself take."""
    case = MEMORY_CASE
    given = problem(case, True)
    tensors = list(given.inputs.values())[1:]
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor)
    before = forget_peak()
    with torch.autocast(DEVICE, DTYPES[case.precision], enabled=case.precision != "fp32"):
        rgb = synthesis(network_of(case, tensors), given.inputs["coords"], pixel_chunk=pixel_chunk or None)
    rgb.backward(torch.ones_like(rgb))
    print(peak() - before)


if __name__ == "__main__":
    main(int(sys.argv[1]))

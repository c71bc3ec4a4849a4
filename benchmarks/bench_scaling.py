"""Time and peak memory of sampling and training at sizes beyond the network's native size.

Large images are sampled in chunks of whole rows, one call for each. Memory is counted beyond parameters and gradients.
"""

import math
import statistics
from functools import lru_cache, partial

import pytest
import torch

from cips_fast import grids
from cips_fast.kernels.report import published_formulation
from cips_fast.synthesis import synthesis

from . import memory
from .bench_generator import Case, draw_tensors, network_of
from .comparison import DEVICE, DTYPES, HALF, OURS, PRECISIONS, QUICK, Group, measured, timed

PIXELS_PER_CALL = 1 << 18
SIZES = (16, 32) if QUICK else (128, 256, 512, 1024, 2048, 4096)
NARROW = (32,) if QUICK else (512, 4096)
TRAINED_SIZE, CHUNK_PIXELS, WIDTH = (16, 64, 32) if QUICK else (512, 1 << 14, 512)
AUTOCAST = {"device_type": DEVICE, "dtype": DTYPES[HALF or "fp32"], "enabled": HALF is not None}
pytestmark = pytest.mark.skipif(not memory.MEASURABLE, reason="peak memory is only known on Linux and GPUs")


@lru_cache(maxsize=1)
def network(width, size=8 if QUICK else 256):
    case = Case("forward", size, 1, width)
    return network_of(case, draw_tensors(case))


@torch.no_grad()
def sample(network, size):
    """A square image of any size [size, size, 3]."""
    rows, image = max(1, PIXELS_PER_CALL // size), torch.empty(size, size, 3, device=DEVICE)
    for top in range(0, size, rows):
        bottom = min(top + rows, size)
        edges = (-1.0, 2 * top / (size - 1) - 1, 1.0, 2 * (bottom - 1) / (size - 1) - 1)
        coords = grids.plane(bottom - top, size, edges, device=DEVICE)
        with torch.autocast(**AUTOCAST):
            image[top:bottom] = synthesis(network, coords.view(1, -1, 2)).view(bottom - top, size, 3)
    return image


@pytest.mark.parametrize(("width", "sizes"), [(512, SIZES), (32, NARROW)], ids=["width 512", "width 32"])
def test_sampling(benchmark, run, longest_call, width, sizes):
    """All sizes, smallest first; sizes that take longer than thirty times --longest-call are left out."""
    benchmark.group = "sampling"
    benchmark.pedantic(sample, (network(width), sizes[0]), warmup_rounds=1)
    seconds = {}
    for size in sizes:
        smaller = max(seconds, default=None)
        if smaller and seconds[smaller] * (size / smaller) ** 2 > 30 * longest_call:
            break
        draw = partial(sample, network(width), size)
        once, image, peak = measured(draw)  # slower than later calls, because memory is given back before it
        assert image.isfinite().all()
        seconds[size] = once if once > 2 else statistics.median(timed(draw)[0] for _ in range(7))
        figures = {"seconds": seconds[size], "MiB beside the image": (peak - image.nbytes) / 2**20}
        run.add_single(what="sampling", width=width, size=size, **figures)
    if len(seconds) > 2:
        exponent = fitted_exponent([size**2 for size in seconds], list(seconds.values()))
        run.add_single(what="sampling: time grows as pixels to the power", width=width, exponent=exponent)


@pytest.mark.parametrize("pixel_chunk", [None, CHUNK_PIXELS], ids=["all kept", "in chunks"])
@pytest.mark.parametrize("size", [TRAINED_SIZE // 2, TRAINED_SIZE])
def test_memory_of_training(benchmark, run, longest_call, size, pixel_chunk):
    """Forward and backward of a full image at the network's native size."""
    benchmark.group = "memory of training"
    expected = run.expected_seconds(Group("generator", "forward + backward", size, 1), OURS)
    if expected > 8 * longest_call:
        pytest.skip(f"would take more than {expected:.0f} s; see --longest-call")
    trained, coords = network(WIDTH, size), grids.plane(size, size, device=DEVICE).view(1, -1, 2)
    for tensor in trained.tensors():
        tensor.grad = torch.zeros_like(tensor)

    def train():
        with torch.autocast(**AUTOCAST):
            rgb = synthesis(trained, coords, pixel_chunk=pixel_chunk)
        rgb.backward(torch.ones_like(rgb))

    in_use = memory.forget_peak()
    benchmark.pedantic(train)
    figures = {"seconds": benchmark.stats.stats.median, "MiB": (memory.peak() - in_use) / 2**20}
    run.add_single(what="training", size=size, pixel_chunk=pixel_chunk or 0, **figures)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [TRAINED_SIZE // 2, TRAINED_SIZE])
def test_memory_that_published_keeps(benchmark, run, size, precision):
    """Bytes that autograd keeps of the published formulation for the backward pass: counted on tensors without memory.

    The peak of a real run is higher.
    """
    benchmark.group = "memory of training"
    case = Case("forward", size, 1, WIDTH)
    leaves = [tensor.to("meta").detach().requires_grad_() for tensor in draw_tensors(case)]
    coords = grids.plane(size, size).to("meta").view(1, -1, 2)
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no later storage gets the same address
        return tensor

    def run_forward():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return published_formulation.synthesis(network_of(case, leaves), coords, dtype=DTYPES[precision])

    benchmark.pedantic(run_forward)
    given = {tensor.untyped_storage()._cdata for tensor in leaves}
    total = sum(storage.nbytes() for key, storage in kept.items() if key not in given)
    run.add_single(what=f"training, published {precision}: kept for backward", size=size, MiB=total / 2**20)


def fitted_exponent(pixels, seconds):
    """The slope of log seconds over log pixels, by least squares: 1 if time is proportional to pixels."""
    x, y = ([math.log(value) for value in values] for values in (pixels, seconds))
    x_mean, y_mean = statistics.fmean(x), statistics.fmean(y)
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / sum((a - x_mean) ** 2 for a in x)

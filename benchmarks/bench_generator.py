"""A whole generator, forward and forward + backward: published, eager and compiled PyTorch against this project.

The network is the paper's without the mapping network: encoding, ModFC layers of one width, and RGB taps.
"""

import math
from functools import lru_cache, partial
from typing import NamedTuple

import pytest
import torch

from cips_fast import grids
from cips_fast import reference as ref
from cips_fast.kernels.network import Network
from cips_fast.kernels.report import published_formulation
from cips_fast.synthesis import synthesis

from .bench_fourier import eager_fourier_encode
from .bench_mod_fc import eager_mod_fc
from .comparison import BACKEND, DEVICE, DIRECTIONS, DTYPES, GRID, HEADLINES, PLAIN, PRECISIONS, QUICK, Group
from .gemm import layer_products
from .operation import Operation


class Case(NamedTuple):
    direction: str
    size: int
    batch: int
    width: int = 512

    @property
    def layers(self):
        return 2 * int(math.log2(self.size)) - 1

    @property
    def group(self):
        return Group("generator", self.direction, self.size, self.batch)

    def __str__(self):
        return str(self.group)


CASES = [Case(direction, 8, 2, 32) for direction in DIRECTIONS] if QUICK else [Case(*grid) for grid in GRID]


def network_of(case, tensors):
    return Network.from_tensors(tensors, case.layers, False, True)


def draw_tensors(case):
    """Random parameters of an untrained generator, float32, in the order of `Network.from_tensors`."""
    rng = torch.Generator(DEVICE).manual_seed(0)
    outputs, width = case.layers // 2, case.width
    inputs = [2 * width, *[width] * (case.layers - 1)]
    shapes = [(width, 2), (width,), (case.size, case.size, width), *((width, i) for i in inputs)]
    shapes += [(width,)] * case.layers + [(case.batch, i) for i in inputs]
    shapes += [(3, width)] * outputs + [(3,)] * outputs + [(case.batch, width)] * outputs
    return [torch.randn(shape, generator=rng, device=DEVICE, requires_grad=True) for shape in shapes]


def products_of(case):
    """The matrix products of the layers and of the taps."""
    widths = [(2 * case.width, case.width), *[(case.width, case.width)] * (case.layers - 1)]
    widths += [(case.width, 3)] * (case.layers // 2)
    of_layer = partial(layer_products, case.batch, case.size**2, backward=case.group.backward)
    return [product for inputs, outputs in widths for product in of_layer(inputs, outputs)]


def eager(network, coords, *, dtype):
    """Plain PyTorch at its best: `bench_mod_fc.eager_mod_fc` for one layer after another."""
    encoding = (network.freq, network.phase, network.table)
    x = eager_fourier_encode(coords, *encoding, align_corners=True, dtype=dtype).expand(network.batch, -1, -1)
    taps = iter(zip(network.tap_weights, network.tap_styles, network.tap_biases, strict=True))
    rgb = 0
    for index, layer in enumerate(zip(network.weights, network.styles, network.biases, strict=True)):
        x = eager_mod_fc(x, *layer, demodulate=True, activation="lrelu")
        if index in network.tapped:
            rgb = rgb + eager_mod_fc(x, *next(taps), demodulate=False, activation="linear").float()
    return rgb


def ours(network, coords, *, dtype):
    """This project's synthesis. Its compute dtype is that of autocast, not `dtype`."""
    return synthesis(network, coords, backend=BACKEND)


def on_network(function, case):
    """Turn function(network, coords, dtype=) into one that takes coordinates, and the network's tensors by name."""

    def call(coords, *, dtype, **tensors):
        return function(network_of(case, list(tensors.values())), coords, dtype=dtype)

    return call


def formula(network, coords, *, dtype):
    return ref.synthesis_ref(network, coords, dtype=dtype)


FORMULATIONS = {"published": published_formulation.synthesis, "eager": eager, "ours": ours}


@lru_cache(maxsize=len(PRECISIONS))
def operation(case, precision):
    """The native grid, which the batch shares."""
    tensors = {f"tensor {index}": tensor for index, tensor in enumerate(draw_tensors(case))}
    return Operation(
        reference=on_network(formula, case),
        inputs={"coords": grids.plane(case.size, case.size, device=DEVICE).view(1, -1, 2), **tensors},
        options={"dtype": DTYPES[precision]},
        dtype=DTYPES[precision],
        backward=case.group.backward,
        batched=tuple(name for index, name in enumerate(tensors) if _is_style(case, index)),
        pixelwise=("coords",),
        autocast=True,
        saved=tuple(tensors),
        products=products_of(case),
        deep=True,
    )


def _is_style(case, index):
    """Whether the network's tensor at this index is a style, which differs from image to image."""
    layers, taps = case.layers, case.layers // 2
    after = 3 + 3 * layers
    return after - layers <= index < after or index >= after + 2 * taps


@pytest.mark.parametrize("case", CASES, ids=str)
def test_generator(compare, case):
    functions = {name: on_network(function, case) for name, function in FORMULATIONS.items()}
    always = PLAIN if case[:3] in HEADLINES else ()
    if always and not case.group.backward:
        always += ("compiled",)
    compare(case.group, functions, partial(operation, case), always=always)

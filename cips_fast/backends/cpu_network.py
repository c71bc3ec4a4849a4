"""A whole network on a CPU, forward and backward, a tile of pixels after another.

    x_l = lrelu(W'_l x_{l-1} + β_l)        √2 and the demodulation in W', √2 in β

A layer is one oneDNN call with the leaky ReLU as its post-op. Layers run over one tile before the next, so that what
one call writes the next reads from cache, and every thread has a tile of its own, or in training an image. The backward
pass is two products and one elementwise pass a layer. Images whose layers are little work go through together, as a
batched product and a pass: their calls would take longer.

lrelu is positively homogeneous, so the end of a residual block, (y + x)/√2, costs one pass: its W' and β have no √2.

    B images   g of them at once   P pixels   n pixels of a tile   I, O channels of a layer
    C channels of each half of the encoding
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference as ref
from ..hardware import cpu_capabilities
from ..kernels.network import Network
from .cpu_encoding import add_to_table, encode, phases, places_bwd
from .cpu_layer import Layer, apply_layer, images_at_once, modulated, modulated_bwd, product
from .threads import LEAST, slices, spread

INVERSE_SQRT_2 = math.sqrt(0.5)
TILE = 2  # second-level caches that a layer's input and output fill
TRAINING = 2  # times as many pixels where gradients of weights are added up


@dataclass(frozen=True)
class Kept:
    """What the backward pass needs of a tile of some images, beside x₀."""

    outputs: list[Tensor]  # what every layer hands on [g, n, O]
    own: list[Tensor]  # of every residual block the last layer's own output [g, n, O]

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return [*self.outputs, *self.own]

    @staticmethod
    def take(tensors: Iterator[Tensor], network: Network) -> "Kept":
        """The next tensors of such a network, in their order."""
        return Kept([next(tensors) for _ in network.weights], [next(tensors) for _ in network.blocks])


@dataclass(frozen=True)
class Weights:
    """All of a network's modulated weights."""

    layers: list[Layer]
    taps: list[Layer]  # biases are those of the colours
    shortcuts: list[Tensor]  # of the compute dtype [O, I]

    @staticmethod
    def of(network: Network, dtype: torch.dtype) -> "Weights":
        """In a compute dtype."""
        layers = [
            modulated(weight, style, bias, gain, True, dtype)
            for weight, style, bias, gain in zip(
                network.weights, network.styles, network.biases, _gains(network), strict=True
            )
        ]
        taps = [
            modulated(weight, style, bias, 1.0, False, dtype)
            for weight, style, bias in zip(network.tap_weights, network.tap_styles, network.tap_biases, strict=True)
        ]
        return Weights(layers, taps, [weight.to(dtype) for weight in network.shortcuts])

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.layers[0].w.dtype

    def tensors(self) -> list[Tensor]:
        """All tensors but the shortcuts, which may be parameters."""
        return [t for each in (*self.layers, *self.taps) for t in (each.w, each.bias, each.scale)]

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor], network: Network) -> tuple["Weights", list[Tensor]]:
        """What `tensors` gave for such a network, and the tensors that follow it."""
        rest = iter(tensors)
        gains = _gains(network)
        layers = [Layer(next(rest), next(rest), next(rest), gain) for gain in gains]
        taps = [Layer(next(rest), next(rest), next(rest), 1.0) for _ in network.tap_weights]
        return Weights(layers, taps, [weight.to(layers[0].w.dtype) for weight in network.shortcuts]), list(rest)


def _gains(network: Network) -> list[float]:
    return [1.0 if place in network.blocks else math.sqrt(2) for place in range(len(network.weights))]


def render(network: Network, coords: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """Colours, float32 [B, P, 3], keeping nothing: memory for one tile a thread, whatever P.

    In float32 a pixel of a single image is the same to the bit beside any others, if they are `workers.LEAST` or more.

    Args:
        network: its parameters.
        coords: float32 [B|1, P, D].
        at: where the table is read, float32 [B|1, P, 2].
        dtype: of weights and activations, one of cpu.DTYPES.
    """
    return _render(network, Weights.of(network, dtype), coords, at)


def _render(network: Network, weights: Weights, coords: Tensor, at: Tensor) -> Tensor:
    rgb, images = coords.new_empty(network.batch, coords.shape[1], 3), groups(network, coords.shape[1])

    def draw(tile: slice) -> None:
        x0 = encode(network, coords[:, tile], at[:, tile], weights.dtype)
        for some in images:
            _forward(network, weights, x0, some, rgb[some, tile])

    for _ in spread(draw, tiles(network, coords.shape[1], weights.dtype)):
        pass
    return rgb


def forward(
    network: Network, coords: Tensor, at: Tensor, dtype: torch.dtype, pixel_chunk: int
) -> tuple[Tensor, list[Tensor]]:
    """Colours, and what `backward` needs, activations too unless `pixel_chunk` > 0."""
    weights = Weights.of(network, dtype)
    saved = weights.tensors()
    if pixel_chunk:
        return _render(network, weights, coords, at), saved
    rgb = coords.new_empty(network.batch, coords.shape[1], 3)
    for tile in training_tiles(network, coords.shape[1], dtype):
        x0 = encode(network, coords[:, tile], at[:, tile], dtype)
        draw = partial(_forward_kept, network, weights, x0, rgb[:, tile])
        kept = spread(draw, groups(network, coords.shape[1]))
        saved += [x0, *(t for each in kept for t in each.tensors())]
    return rgb, saved


def backward(
    network: Network,
    drgb: Tensor,
    coords: Tensor,
    at: Tensor,
    saved: Sequence[Tensor],
    dtype: torch.dtype,
    pixel_chunk: int,
    *,
    want_points: bool,
) -> tuple[Network, tuple[Tensor, Tensor] | None]:
    """Gradients of a network, and of coords and at if wanted: drgb [B, P, 3].

    With `pixel_chunk` N nothing was kept: at most N pixels are computed anew at a time.
    """
    (weights, rest), P = Weights.from_tensors(saved, network), coords.shape[1]
    gradients = Gradients(network, weights, coords, at, want_points=want_points)
    if pixel_chunk:
        for tile in training_tiles(network, P, dtype, pixel_chunk):
            x0 = encode(network, coords[:, tile], at[:, tile], dtype)
            gradients.add(tile, x0, None, drgb[:, tile])
        return gradients.of_network(drgb), gradients.of_points
    end, rest = 0, iter(rest)
    for x0 in rest:  # tile after tile of what `forward` saved, however many threads it had
        start, end = end, end + x0.shape[1]
        kept = [Kept.take(rest, network) for _ in groups(network, P)]
        gradients.add(slice(start, end), x0, kept, drgb[:, start:end])
    return gradients.of_network(drgb), gradients.of_points


def _forward_kept(network: Network, weights: Weights, x0: Tensor, rgb: Tensor | None, some: slice) -> Kept:
    kept = Kept([], [])
    _forward(network, weights, x0, some, None if rgb is None else rgb[some], kept)
    return kept


def _forward(
    network: Network, weights: Weights, x0: Tensor, some: slice, rgb: Tensor | None, kept: Kept | None = None
) -> None:
    """All layers for a tile of some images; colours go to `rgb` [g, n, 3], and layers to `kept`, if given."""
    blocks = network.blocks
    taps = {} if rgb is None else dict(zip(network.tapped, weights.taps, strict=True))
    if rgb is not None:
        rgb.copy_(torch.stack([tap.bias.float() for tap in weights.taps]).sum(0))
    x = before = _of_images(x0, some)
    for place, layer in enumerate(weights.layers):
        y = apply_layer(x, layer.w[some], layer.bias)
        if place in blocks:
            if kept is not None:
                kept.own.append(y)
            y = torch.add(y, _around(before, blocks[place], weights), alpha=INVERSE_SQRT_2)
        before, x = x, y
        if kept is not None:
            kept.outputs.append(x)
        if place in taps:
            rgb += product(x, taps[place].w[some].mT)


def _of_images(x0: Tensor, some: slice) -> Tensor:
    """Of some images, where all may share it: [g, n, 2C]."""
    return x0[some] if len(x0) > 1 else x0.expand(some.stop - some.start, -1, -1)


def _around(before: Tensor, shortcut: int | None, weights: Weights) -> Tensor:
    return before if shortcut is None else F.linear(before, weights.shortcuts[shortcut])


class Gradients:
    """Gradients of a network, added up tile by tile and image by image."""

    def __init__(self, network: Network, weights: Weights, coords: Tensor, at: Tensor, *, want_points: bool):
        self.network, self.weights, self.points = network, weights, (coords, at)
        self.images = groups(network, coords.shape[1])
        self.layers = [coords.new_zeros(layer.w.shape) for layer in weights.layers]
        self.taps = [coords.new_zeros(layer.w.shape) for layer in weights.taps]
        # Of every group of images its own: they may be at work at the same time.
        self.biases = [coords.new_zeros(len(self.images), width) for width in network.widths]
        self.shortcuts = [coords.new_zeros(len(self.images), *w.shape) for w in weights.shortcuts]
        self.freq, self.phase, self.table = (
            coords.new_zeros(t.shape) for t in (network.freq, network.phase, network.table)
        )
        self.of_points = (torch.zeros_like(coords), torch.zeros_like(at)) if want_points else None

    def add(self, tile: slice, x0: Tensor, kept: Sequence[Kept] | None, drgb: Tensor) -> None:
        """Go back through a tile of all images; what was not kept is computed anew: drgb of these pixels [B, n, 3]."""
        if not self.images:  # an empty batch: all gradients stay zero
            return

        def back(group: int) -> Tensor:
            some = self.images[group]
            layers = _forward_kept(self.network, self.weights, x0, None, some) if kept is None else kept[group]
            return self._add_images(group, x0, layers, drgb[some])

        parts = spread(back, range(len(self.images)))
        if len(x0) == len(drgb):
            dx0 = torch.cat(list(parts))
        else:
            dx0 = next(parts).sum(0, keepdim=True, dtype=torch.float32)
            for part in parts:
                dx0 += part.sum(0, keepdim=True, dtype=torch.float32)
        self._add_encoding(tile, dx0)

    def _add_images(self, group: int, x0: Tensor, kept: Kept, drgb: Tensor) -> Tensor:
        """The gradient of x₀ [g, n, 2C]: drgb of these images [g, n, 3]."""
        network, weights, blocks = self.network, self.weights, self.network.blocks
        some, colours, outputs = self.images[group], drgb.to(x0.dtype), kept.outputs
        x0, own = _of_images(x0, some), dict(zip(blocks, kept.own, strict=True))
        taps = {place: tap for tap, place in enumerate(network.tapped)}
        dx = passed = None
        for place in range(len(weights.layers) - 1, -1, -1):
            y, x = outputs[place], outputs[place - 1] if place else x0
            if place in taps:
                tap = weights.taps[taps[place]].w[some]
                self.taps[taps[place]][some] += product(colours.mT, y)
                dx = product(colours, tap) if dx is None else dx.baddbmm_(colours, tap)
            if place in own:
                passed = dx
            dz = torch.ops.aten.leaky_relu_backward(dx, own.get(place, y), ref.LRELU_SLOPE, True)
            self.biases[place][group] += dz.sum((0, 1))
            self.layers[place][some] += product(dz.mT, x)
            dx = product(dz, weights.layers[place].w[some])
            if place + 1 in own:
                dx.add_(self._back_around(group, passed, x, blocks[place + 1]), alpha=INVERSE_SQRT_2)
        return dx

    def _back_around(self, group: int, passed: Tensor, x: Tensor, shortcut: int | None) -> Tensor:
        """√2 times the gradient that comes to a residual block's input x around the block."""
        if shortcut is None:
            return passed
        self.shortcuts[shortcut][group].add_(product(passed.mT, x).sum(0), alpha=INVERSE_SQRT_2)
        return passed @ self.weights.shortcuts[shortcut]

    def _add_encoding(self, tile: slice, dx0: Tensor) -> None:
        """dx0 [B|1, n, 2C]."""
        network, (coords, at) = self.network, (points[:, tile] for points in self.points)
        C = network.freq.shape[0]
        dphases = phases(coords, network.freq, network.phase).cos_().mul_(dx0[..., :C]).flatten(0, 1)
        self.freq.addmm_(dphases.mT, coords.flatten(0, 1))
        self.phase += dphases.sum(0)
        dread, align = dx0[..., C:].float(), network.align_corners
        add_to_table(self.table, dread, at, align)
        if self.of_points is not None:
            dcoords, dat = self.of_points
            dcoords[:, tile] = (dphases @ network.freq.float()).view(coords.shape)
            dat[:, tile] = places_bwd(dread, network.table, at, align)

    def of_network(self, drgb: Tensor) -> Network:
        """Gradients in the places of their parameters, of these dtypes: drgb of all pixels [B, P, 3]."""
        network, weights = self.network, self.weights
        layers = [
            modulated_bwd(*each, True)
            for each in zip(self.layers, network.weights, network.styles, weights.layers, strict=True)
        ]
        taps = [
            modulated_bwd(*each, False)
            for each in zip(self.taps, network.tap_weights, network.tap_styles, weights.taps, strict=True)
        ]
        of_colours = drgb.contiguous().sum((0, 1), dtype=torch.float32)
        ordered = [
            [dweight for dweight, _ in layers],
            [db.sum(0) * layer.gain for db, layer in zip(self.biases, weights.layers, strict=True)],
            [dstyle for _, dstyle in layers],
            [dweight for dweight, _ in taps],
            [of_colours.clone() for _ in taps],
            [dstyle for _, dstyle in taps],
            [dweight.sum(0) for dweight in self.shortcuts],
        ]
        gradients = Network(self.freq, self.phase, self.table, *ordered, network.residual)
        pairs = zip(gradients.tensors(), network.tensors(), strict=True)
        return gradients.with_tensors([gradient.to(parameter.dtype) for gradient, parameter in pairs])


def groups(network: Network, pixels: int) -> list[slice]:
    """Images that go through together, as the widest layer asks for."""
    return images_at_once(network.batch, 2 * pixels * max(network.widths) ** 2)


def tiles(network: Network, pixels: int, dtype: torch.dtype) -> list[slice]:
    """Pixels that a thread takes at a time: as few as its cache asks for, and at least some for every thread."""
    fair = -(-pixels // torch.get_num_threads())
    return slices(pixels, min(_tile(network, pixels, dtype), max(fair, 256)))


def training_tiles(network: Network, pixels: int, dtype: torch.dtype, pixel_chunk: int = 0) -> list[slice]:
    """Pixels at a time, at most `pixel_chunk` if > 0, and else more, for each adds to the gradients of weights."""
    step = TRAINING * _tile(network, pixels, dtype)
    return slices(pixels, min(step, pixel_chunk) if pixel_chunk else step)


def _tile(network: Network, pixels: int, dtype: torch.dtype) -> int:
    """A layer's input and output are twice a core's cache: the weights, laid out anew for every call, want many."""
    cache = TILE * cpu_capabilities().get("l2_cache_size", 1 << 20)
    images = max((some.stop - some.start for some in groups(network, pixels)), default=1)
    return max(2 * LEAST, cache // (2 * images * max(network.widths) * dtype.itemsize) // 64 * 64)


def saved_like(network: Network, coords: Tensor, dtype: torch.dtype, pixel_chunk: int) -> list[Tensor]:
    """Tensors like those that `forward` gives."""
    B, C = network.batch, network.freq.shape[0]
    saved = []
    for O, I in (weight.shape for weight in (*network.weights, *network.tap_weights)):
        saved += [coords.new_empty(B, O, I, dtype=dtype), coords.new_empty(O, dtype=dtype), coords.new_empty(B, O)]
    handed_on = [*network.widths, *(network.widths[end] for end in network.blocks)]
    for tile in [] if pixel_chunk else training_tiles(network, coords.shape[1], dtype):
        n, images = tile.stop - tile.start, groups(network, coords.shape[1])
        saved.append(coords.new_empty(len(coords), n, 2 * C, dtype=dtype))
        saved += [coords.new_empty(some.stop - some.start, n, O, dtype=dtype) for some in images for O in handed_on]
    return saved

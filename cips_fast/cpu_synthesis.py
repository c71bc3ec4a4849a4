"""A whole network on a CPU, forward and backward, a tile of pixels after another.

    x_l = lrelu(W'_l x_{l-1} + β_l)        √2 and the demodulation in W', √2 in β

A layer is one oneDNN call with the leaky ReLU as its post-op. Layers run over one tile before the next, so that what
one call writes the next reads from cache. The backward pass is two products and one elementwise pass a layer. Images
whose layers are little work go through together, as a batched product and a pass: their calls would take longer.

lrelu is positively homogeneous, so the end of a residual block, (y + x)/√2, costs one pass: its W' and β have no √2.

    B images   g of them at once   P pixels   n pixels of a tile   I, O channels of a layer
    C channels of each half of the encoding
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference as ref
from .cpu import Layer, add_to_table, apply_layer, modulated, modulated_bwd, places_bwd, product, read_table
from .kernels.launch import cpu_capabilities
from .kernels.network import Network

DTYPES = (torch.bfloat16, torch.float32)
INVERSE_SQRT_2 = math.sqrt(0.5)
CALL = 1 << 28  # operations of a product from which on it is worth a call of its own


@dataclass(frozen=True)
class Kept:
    """What the backward pass needs of a tile of every image."""

    x0: Tensor  # [B|1, n, 2C]
    outputs: list[list[Tensor]]  # of every group of images what its layers hand on [g, n, O]
    own: list[list[Tensor]]  # of every group and residual block the last layer's own output [g, n, O]

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return [self.x0, *(t for groups in (self.outputs, self.own) for group in groups for t in group)]

    @staticmethod
    def nothing(x0: Tensor, groups: int) -> "Kept":
        """Of no layer yet."""
        return Kept(x0, [[] for _ in range(groups)], [[] for _ in range(groups)])

    @staticmethod
    def take(x0: Tensor, tensors: Iterator[Tensor], network: Network, groups: int) -> "Kept":
        """With the next tensors of such a network, in their order."""
        outputs = [[next(tensors) for _ in network.weights] for _ in range(groups)]
        return Kept(x0, outputs, [[next(tensors) for _ in network.blocks] for _ in range(groups)])


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
    """Colours, float32 [B, P, 3], keeping nothing: memory for one tile, whatever P.

    Args:
        network: its parameters.
        coords: float32 [B|1, P, D].
        at: where the table is read, float32 [B|1, P, 2].
        dtype: of weights and activations, one of DTYPES.
    """
    weights, rgb = Weights.of(network, dtype), coords.new_empty(network.batch, coords.shape[1], 3)
    for start, end in tiles(network, coords.shape[1], dtype):
        x0 = encode(network, coords[:, start:end], at[:, start:end], dtype)
        _forward_tile(network, weights, x0, rgb[:, start:end], None, groups(network, coords.shape[1]))
    return rgb


def forward(
    network: Network, coords: Tensor, at: Tensor, dtype: torch.dtype, pixel_chunk: int
) -> tuple[Tensor, list[Tensor]]:
    """Colours, and what `backward` needs, activations too unless `pixel_chunk` > 0."""
    weights, rgb = Weights.of(network, dtype), coords.new_empty(network.batch, coords.shape[1], 3)
    saved = weights.tensors()
    for start, end in (tiles if pixel_chunk else training_tiles)(network, coords.shape[1], dtype):
        x0 = encode(network, coords[:, start:end], at[:, start:end], dtype)
        kept = None if pixel_chunk else Kept.nothing(x0, len(groups(network, coords.shape[1])))
        _forward_tile(network, weights, x0, rgb[:, start:end], kept, groups(network, coords.shape[1]))
        saved += [] if kept is None else kept.tensors()
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
    end = 0
    tiled = _recomputed(network, weights, coords, at, dtype, pixel_chunk) if pixel_chunk else _taken(rest, network, P)
    for kept in tiled:
        start, end = end, end + kept.x0.shape[1]
        gradients.add(start, end, kept, drgb[:, start:end])
    return gradients.of_network(drgb), gradients.of_points


def _recomputed(
    network: Network, weights: Weights, coords: Tensor, at: Tensor, dtype: torch.dtype, pixel_chunk: int
) -> Iterator[Kept]:
    for start, end in training_tiles(network, coords.shape[1], dtype, pixel_chunk):
        x0 = encode(network, coords[:, start:end], at[:, start:end], dtype)
        images = groups(network, coords.shape[1])
        kept = Kept.nothing(x0, len(images))
        _forward_tile(network, weights, x0, None, kept, images)
        yield kept


def _taken(tensors: Sequence[Tensor], network: Network, pixels: int) -> Iterator[Kept]:
    """Tile after tile of what `forward` saved, with however many threads it ran."""
    rest, images = iter(tensors), len(groups(network, pixels))
    for x0 in rest:
        yield Kept.take(x0, rest, network, images)


def encode(network: Network, coords: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """[sin(F c + φ); E(c)]: coords [B|1, n, D], at [B|1, n, 2] -> [B|1, n, 2C]."""
    C = network.freq.shape[0]
    x0 = coords.new_empty(*coords.shape[:2], 2 * C, dtype=dtype)
    x0[..., :C] = _phases(network, coords).sin_()
    x0[..., C:] = read_table(network.table, at, network.align_corners)
    return x0


def _phases(network: Network, coords: Tensor) -> Tensor:
    rows = torch.addmm(network.phase.float(), coords.flatten(0, 1), network.freq.float().mT)
    return rows.view(*coords.shape[:2], -1)


def _forward_tile(
    network: Network, weights: Weights, x0: Tensor, rgb: Tensor | None, kept: Kept | None, images: list[slice]
) -> None:
    """All layers for a tile of all images; colours go to `rgb` [B, n, 3], and layers to `kept`, if given."""
    blocks = network.blocks
    taps = {} if rgb is None else dict(zip(network.tapped, weights.taps, strict=True))
    if rgb is not None:
        rgb.copy_(torch.stack([tap.bias.float() for tap in weights.taps]).sum(0))
    for group, some in enumerate(images):
        x = before = _of_images(x0, some)
        for place, layer in enumerate(weights.layers):
            y = apply_layer(x, layer.w[some], layer.bias)
            if place in blocks:
                if kept is not None:
                    kept.own[group].append(y)
                y = torch.add(y, _around(before, blocks[place], weights), alpha=INVERSE_SQRT_2)
            before, x = x, y
            if kept is not None:
                kept.outputs[group].append(x)
            if place in taps:
                rgb[some] += product(x, taps[place].w[some].mT)


def _of_images(x0: Tensor, some: slice) -> Tensor:
    """Of some images, where all may share it: [g, n, 2C]."""
    return x0[some] if len(x0) > 1 else x0.expand(some.stop - some.start, -1, -1)


def _around(before: Tensor, shortcut: int | None, weights: Weights) -> Tensor:
    return before if shortcut is None else F.linear(before, weights.shortcuts[shortcut])


class Gradients:
    """Gradients of a network, added up tile by tile and image by image."""

    def __init__(self, network: Network, weights: Weights, coords: Tensor, at: Tensor, *, want_points: bool):
        self.network, self.weights, self.points = network, weights, (coords, at)
        self.layers = [coords.new_zeros(layer.w.shape) for layer in weights.layers]
        self.taps = [coords.new_zeros(layer.w.shape) for layer in weights.taps]
        self.biases = [coords.new_zeros(width) for width in network.widths]
        self.shortcuts = [coords.new_zeros(w.shape) for w in weights.shortcuts]
        self.freq, self.phase, self.table = (
            coords.new_zeros(t.shape) for t in (network.freq, network.phase, network.table)
        )
        self.of_points = (torch.zeros_like(coords), torch.zeros_like(at)) if want_points else None

    def add(self, start: int, end: int, kept: Kept, drgb: Tensor) -> None:
        """Go back through a tile of all images: drgb of these pixels [B, n, 3]."""
        dx0 = None
        for group, some in enumerate(groups(self.network, self.points[0].shape[1])):
            part = self._add_images(group, some, kept, drgb[some])
            if len(kept.x0) == len(drgb):
                dx0 = torch.empty_like(kept.x0) if dx0 is None else dx0
                dx0[some] = part
            else:
                part = part.sum(0, keepdim=True, dtype=torch.float32)
                dx0 = part if dx0 is None else dx0.add_(part)
        self._add_encoding(start, end, dx0)

    def _add_images(self, group: int, some: slice, kept: Kept, drgb: Tensor) -> Tensor:
        """The gradient of x₀ [g, n, 2C]."""
        network, weights, blocks = self.network, self.weights, self.network.blocks
        colours, outputs, x0 = drgb.to(kept.x0.dtype), kept.outputs[group], _of_images(kept.x0, some)
        taps = {place: tap for tap, place in enumerate(network.tapped)}
        own = dict(zip(blocks, kept.own[group], strict=True))
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
            self.biases[place] += dz.sum((0, 1))
            self.layers[place][some] += product(dz.mT, x)
            dx = product(dz, weights.layers[place].w[some])
            if place + 1 in own:
                dx.add_(self._back_around(passed, x, blocks[place + 1]), alpha=INVERSE_SQRT_2)
        return dx

    def _back_around(self, passed: Tensor, x: Tensor, shortcut: int | None) -> Tensor:
        """√2 times the gradient that comes to a residual block's input x around the block."""
        if shortcut is None:
            return passed
        self.shortcuts[shortcut].add_(product(passed.mT, x).sum(0), alpha=INVERSE_SQRT_2)
        return passed @ self.weights.shortcuts[shortcut]

    def _add_encoding(self, start: int, end: int, dx0: Tensor) -> None:
        """dx0 [B|1, n, 2C]."""
        network, (coords, at) = self.network, (points[:, start:end] for points in self.points)
        C = network.freq.shape[0]
        dphases = _phases(network, coords).cos_().mul_(dx0[..., :C]).flatten(0, 1)
        self.freq.addmm_(dphases.mT, coords.flatten(0, 1))
        self.phase += dphases.sum(0)
        dread, align = dx0[..., C:].float(), network.align_corners
        add_to_table(self.table, dread, at, align)
        if self.of_points is not None:
            dcoords, dat = self.of_points
            dcoords[:, start:end] = (dphases @ network.freq.float()).view(coords.shape)
            dat[:, start:end] = places_bwd(dread, network.table, at, align)

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
            [db * layer.gain for db, layer in zip(self.biases, weights.layers, strict=True)],
            [dstyle for _, dstyle in layers],
            [dweight for dweight, _ in taps],
            [of_colours.clone() for _ in taps],
            [dstyle for _, dstyle in taps],
            self.shortcuts,
        ]
        gradients = Network(self.freq, self.phase, self.table, *ordered, network.residual)
        pairs = zip(gradients.tensors(), network.tensors(), strict=True)
        return gradients.with_tensors([gradient.to(parameter.dtype) for gradient, parameter in pairs])


def groups(network: Network, pixels: int) -> list[slice]:
    """Images that go through together: each for itself where a layer of one is work enough for a call."""
    widest = max(network.widths)
    step = 1 if 2 * pixels * widest**2 >= CALL else network.batch
    return [slice(start, start + step) for start in range(0, network.batch, step)]


def tiles(network: Network, pixels: int, dtype: torch.dtype) -> list[tuple[int, int]]:
    """Ranges of pixels: a layer's input and output fill half of all threads' caches."""
    return _ranges(pixels, _tile(network, pixels, dtype))


def training_tiles(network: Network, pixels: int, dtype: torch.dtype, pixel_chunk: int = 0) -> list[tuple[int, int]]:
    """Ranges of pixels, at most `pixel_chunk` if > 0, and else longer, for each adds to the gradients of weights."""
    step = 4 * _tile(network, pixels, dtype)
    return _ranges(pixels, min(step, pixel_chunk) if pixel_chunk else step)


def _tile(network: Network, pixels: int, dtype: torch.dtype) -> int:
    cache = torch.get_num_threads() * cpu_capabilities().get("l2_cache_size", 1 << 20) // 2
    images = groups(network, pixels)[0].stop
    return max(64, cache // (2 * images * max(network.widths) * dtype.itemsize) // 64 * 64)


def _ranges(pixels: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, pixels)) for start in range(0, pixels, step)]


def saved_like(network: Network, coords: Tensor, dtype: torch.dtype, pixel_chunk: int) -> list[Tensor]:
    """Tensors like those that `forward` gives."""
    B, C = network.batch, network.freq.shape[0]
    saved = []
    for O, I in (weight.shape for weight in (*network.weights, *network.tap_weights)):
        saved += [coords.new_empty(B, O, I, dtype=dtype), coords.new_empty(O, dtype=dtype), coords.new_empty(B, O)]
    ends, images = [network.widths[end] for end in network.blocks], groups(network, coords.shape[1])
    for start, end in [] if pixel_chunk else training_tiles(network, coords.shape[1], dtype):
        n = end - start
        saved.append(coords.new_empty(len(coords), n, 2 * C, dtype=dtype))
        for widths in (network.widths, ends):
            saved += [coords.new_empty(some.stop - some.start, n, O, dtype=dtype) for some in images for O in widths]
    return saved

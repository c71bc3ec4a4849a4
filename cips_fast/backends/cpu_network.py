"""A whole network on a CPU, forward and backward, in chunks of pixels.

    x_l = lrelu(W'_l x_{l-1} + β_l)        √2 and the demodulation in W', √2 in β

A layer is one oneDNN call with the leaky ReLU as its post-op. All layers run over one chunk of pixels before the next
chunk begins, so that a call reads from cache what the call before it wrote. Each thread works on another chunk or, in
training, on another image. The backward pass of a layer is two products and one elementwise pass. Images whose layers
are little work go through together, as a batched product and a pass, because a call for each image would take longer.

The last layer of a residual block has no √2 in W' and β: (√2 y + x)/√2 = y + x/√2, which is one pass.

    B images   g images of a group   P pixels   n pixels of a chunk   I, O channels of a layer
    C channels of each half of the encoding
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference as ref
from ..hardware import cpu_capabilities
from ..kernels.formulas import INVERSE_SQRT_2
from ..kernels.network import Network
from .chunks import MIN_PIXELS, chunks
from .cpu_encoding import add_to_table, encode, phases, table_coords_bwd
from .cpu_layer import Layer, apply_layer, images_at_once, modulated, modulated_bwd, product
from .threads import spread

L2_CACHES_PER_CHUNK = 2  # a layer's input and output are this many times as large as a core's second-level cache
TRAINING_CHUNK_FACTOR = 2  # training chunks have this many times as many pixels


@dataclass(frozen=True)
class Kept:
    """What the backward pass needs for a chunk of a group of images, in addition to x₀."""

    outputs: list[Tensor]  # every layer's output; for the last layer of a block, the output of the block [g, n, O]
    own: list[Tensor]  # for every residual block, y in y + x/√2 [g, n, O]

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return [*self.outputs, *self.own]

    @staticmethod
    def take(tensors: Iterator[Tensor], network: Network) -> "Kept":
        """The next tensors of an iterator, in the order of `tensors`."""
        return Kept([next(tensors) for _ in network.weights], [next(tensors) for _ in network.blocks])


@dataclass(frozen=True)
class Weights:
    """All of a network's modulated weights."""

    layers: list[Layer]
    taps: list[Layer]
    shortcuts: list[Tensor]  # in the compute dtype [O, I]

    @staticmethod
    def of(network: Network, dtype: torch.dtype) -> "Weights":
        """The modulated weights of a network in the compute dtype."""
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
        """The dtype of weights and activations."""
        return self.layers[0].w.dtype

    def tensors(self) -> list[Tensor]:
        """All tensors but the shortcuts: an operator may not return them, because they may be parameters."""
        return [t for each in (*self.layers, *self.taps) for t in (each.w, each.bias, each.scale)]

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor], network: Network) -> tuple["Weights", list[Tensor]]:
        """The weights from what `tensors` returned for this network, and the tensors that follow them."""
        rest = iter(tensors)
        gains = _gains(network)
        layers = [Layer(next(rest), next(rest), next(rest), gain) for gain in gains]
        taps = [Layer(next(rest), next(rest), next(rest), 1.0) for _ in network.tap_weights]
        return Weights(layers, taps, [weight.to(layers[0].w.dtype) for weight in network.shortcuts]), list(rest)


def _gains(network: Network) -> list[float]:
    return [1.0 if index in network.blocks else ref.LRELU_GAIN for index in range(len(network.weights))]


def infer(
    network: Network, coords: Tensor, table_coords: Tensor, dtype: torch.dtype, inference: str = "auto"
) -> Tensor:
    """Colours at coordinates, without gradients. Memory holds the activations of one chunk per thread, whatever P is.

    In float32 the bits of a pixel of a single image do not depend on the other pixels, if there are at least
    `chunks.MIN_PIXELS` of them.

    Args:
        network: the parameters.
        coords: float32 [B|1, P, D].
        table_coords: where the embedding table is read, float32 [B|1, P, 2].
        dtype: dtype of weights and activations, one of `cpu_layer.DTYPES`.
        inference: not used; the kernels (triton_network.py) have several methods, a CPU has one.

    Returns:
        float32 [B, P, 3].
    """
    return _infer(network, Weights.of(network, dtype), coords, table_coords)


def _infer(network: Network, weights: Weights, coords: Tensor, table_coords: Tensor) -> Tensor:
    rgb, images = coords.new_empty(network.batch, coords.shape[1], 3), groups(network, coords.shape[1])

    def draw(chunk: slice) -> None:
        x0 = encode(network, coords[:, chunk], table_coords[:, chunk], weights.dtype)
        for some in images:
            _forward(network, weights, x0, some, rgb[some, chunk])

    for _ in spread(draw, inference_chunks(network, coords.shape[1], weights.dtype)):
        pass
    return rgb


def forward(
    network: Network, coords: Tensor, table_coords: Tensor, dtype: torch.dtype, pixel_chunk: int
) -> tuple[Tensor, list[Tensor]]:
    """Colours, float32 [B, P, 3], and what `backward` needs: weights, and activations unless `pixel_chunk` > 0."""
    weights = Weights.of(network, dtype)
    saved = weights.tensors()
    if pixel_chunk:
        return _infer(network, weights, coords, table_coords), saved
    rgb = coords.new_empty(network.batch, coords.shape[1], 3)
    for chunk in training_chunks(network, coords.shape[1], dtype):
        x0 = encode(network, coords[:, chunk], table_coords[:, chunk], dtype)
        draw = partial(_forward_kept, network, weights, x0, rgb[:, chunk])
        kept = spread(draw, groups(network, coords.shape[1]))
        saved += [x0, *(t for each in kept for t in each.tensors())]
    return rgb, saved


def backward(
    network: Network,
    drgb: Tensor,
    coords: Tensor,
    table_coords: Tensor,
    saved: Sequence[Tensor],
    dtype: torch.dtype,
    pixel_chunk: int,
    *,
    want_points: bool,
) -> tuple[Network, tuple[Tensor, Tensor] | None]:
    """Gradients of a network and, if wanted, of coords and table_coords: drgb [B, P, 3].

    With `pixel_chunk` N no activations were saved; those of at most N pixels are recomputed at a time.
    """
    weights, rest = Weights.from_tensors(saved, network)
    P = coords.shape[1]
    gradients = Gradients(network, weights, coords, table_coords, want_points=want_points)
    if pixel_chunk:
        for chunk in training_chunks(network, P, dtype, pixel_chunk):
            x0 = encode(network, coords[:, chunk], table_coords[:, chunk], dtype)
            gradients.add(chunk, x0, None, drgb[:, chunk])
        return gradients.of_network(drgb), gradients.of_points
    rest, end = iter(rest), 0
    for x0 in rest:  # the chunks that `forward` saved; their sizes may be those of another number of threads
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
    """All layers for a chunk of the images `some`; if given, write colours to `rgb` [g, n, 3], outputs to `kept`."""
    blocks = network.blocks
    taps = {} if rgb is None else dict(zip(network.tapped, weights.taps, strict=True))
    if rgb is not None:
        rgb.copy_(torch.stack([tap.bias.float() for tap in weights.taps]).sum(0))
    x = before = _of_images(x0, some)
    for index, layer in enumerate(weights.layers):
        y = apply_layer(x, layer.w[some], layer.bias)
        if index in blocks:
            if kept is not None:
                kept.own.append(y)
            y = torch.add(y, _around(before, blocks[index], weights), alpha=INVERSE_SQRT_2)
        before, x = x, y
        if kept is not None:
            kept.outputs.append(x)
        if index in taps:
            rgb += product(x, taps[index].w[some].mT)


def _of_images(x0: Tensor, some: slice) -> Tensor:
    """x₀ of the images `some`, where all images may share x₀ [B|1, n, 2C]: [g, n, 2C]."""
    return x0[some] if len(x0) > 1 else x0.expand(some.stop - some.start, -1, -1)


def _around(before: Tensor, shortcut: int | None, weights: Weights) -> Tensor:
    return before if shortcut is None else F.linear(before, weights.shortcuts[shortcut])


class Gradients:
    """Gradients of a network, summed over chunks of pixels and groups of images."""

    def __init__(self, network: Network, weights: Weights, coords: Tensor, table_coords: Tensor, *, want_points: bool):
        self.network, self.weights, self.points = network, weights, (coords, table_coords)
        self.images = groups(network, coords.shape[1])
        self.layers = [coords.new_zeros(layer.w.shape) for layer in weights.layers]
        self.taps = [coords.new_zeros(layer.w.shape) for layer in weights.taps]
        # One sum for every group of images, because groups may run at the same time.
        self.biases = [coords.new_zeros(len(self.images), width) for width in network.widths]
        self.shortcuts = [coords.new_zeros(len(self.images), *w.shape) for w in weights.shortcuts]
        self.freq, self.phase, self.table = (
            coords.new_zeros(t.shape) for t in (network.freq, network.phase, network.table)
        )
        self.of_points = (torch.zeros_like(coords), torch.zeros_like(table_coords)) if want_points else None

    def add(self, chunk: slice, x0: Tensor, kept: Sequence[Kept] | None, drgb: Tensor) -> None:
        """Add the gradients from a chunk of all images: drgb of its pixels [B, n, 3].

        `kept` has what was saved for each group of images; if it is None, the activations are recomputed.
        """
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
        self._add_encoding(chunk, dx0)

    def _add_images(self, group: int, x0: Tensor, kept: Kept, drgb: Tensor) -> Tensor:
        """Add the gradients from a group of images, and return that of x₀ [g, n, 2C]: drgb [g, n, 3]."""
        network, weights, blocks = self.network, self.weights, self.network.blocks
        some, colours, outputs = self.images[group], drgb.to(x0.dtype), kept.outputs
        x0, own = _of_images(x0, some), dict(zip(blocks, kept.own, strict=True))
        taps = {index: tap for tap, index in enumerate(network.tapped)}
        dx = passed = None
        for index in range(len(weights.layers) - 1, -1, -1):
            y, x = outputs[index], outputs[index - 1] if index else x0
            if index in taps:
                tap = weights.taps[taps[index]].w[some]
                self.taps[taps[index]][some] += product(colours.mT, y)
                dx = product(colours, tap) if dx is None else dx.baddbmm_(colours, tap)
            if index in own:
                passed = dx
            dz = torch.ops.aten.leaky_relu_backward(dx, own.get(index, y), ref.LRELU_SLOPE, True)
            self.biases[index][group] += dz.sum((0, 1))
            self.layers[index][some] += product(dz.mT, x)
            dx = product(dz, weights.layers[index].w[some])
            if index + 1 in own:
                dx.add_(self._back_around(group, passed, x, blocks[index + 1]), alpha=INVERSE_SQRT_2)
        return dx

    def _back_around(self, group: int, passed: Tensor, x: Tensor, shortcut: int | None) -> Tensor:
        """√2 times the gradient of a residual block's input x that does not come through the block's layers."""
        if shortcut is None:
            return passed
        self.shortcuts[shortcut][group].add_(product(passed.mT, x).sum(0), alpha=INVERSE_SQRT_2)
        return passed @ self.weights.shortcuts[shortcut]

    def _add_encoding(self, chunk: slice, dx0: Tensor) -> None:
        """Add the gradients of the encoding's parameters and of the points: dx0 [B|1, n, 2C]."""
        network = self.network
        coords, table_coords = (points[:, chunk] for points in self.points)
        C = network.freq.shape[0]
        dphases = phases(coords, network.freq, network.phase).cos_().mul_(dx0[..., :C]).flatten(0, 1)
        self.freq.addmm_(dphases.mT, coords.flatten(0, 1))
        self.phase += dphases.sum(0)
        dread, align = dx0[..., C:].float(), network.align_corners
        add_to_table(self.table, dread, table_coords, align)
        if self.of_points is not None:
            dcoords, dtable_coords = self.of_points
            dcoords[:, chunk] = (dphases @ network.freq.float()).view(coords.shape)
            dtable_coords[:, chunk] = table_coords_bwd(dread, network.table, table_coords, align)

    def of_network(self, drgb: Tensor) -> Network:
        """The gradients as a network, each where its parameter is, and of its dtype: drgb of all pixels [B, P, 3]."""
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
    """Groups of images that go through the network together; the work of the widest layer decides."""
    return images_at_once(network.batch, 2 * pixels * max(network.widths) ** 2)


def inference_chunks(network: Network, pixels: int, dtype: torch.dtype) -> list[slice]:
    """The chunks of pixels that threads work on: small enough for their caches, and enough of them for all threads."""
    fair = -(-pixels // torch.get_num_threads())
    return chunks(pixels, min(_chunk_pixels(network, pixels, dtype), max(fair, 256)))


def training_chunks(network: Network, pixels: int, dtype: torch.dtype, pixel_chunk: int = 0) -> list[slice]:
    """The chunks of pixels in training, of at most `pixel_chunk` pixels if that is > 0.

    They are larger than in inference, because each chunk adds to the gradients of the weights.
    """
    size = TRAINING_CHUNK_FACTOR * _chunk_pixels(network, pixels, dtype)
    return chunks(pixels, min(size, pixel_chunk) if pixel_chunk else size)


def _chunk_pixels(network: Network, pixels: int, dtype: torch.dtype) -> int:
    """Pixels of a chunk, so that a layer's input and output together are `L2_CACHES_PER_CHUNK` second-level caches.

    Smaller chunks would fit in one cache, but oneDNN packs the weights again for every call, so they waste time.
    """
    cache = L2_CACHES_PER_CHUNK * cpu_capabilities().get("l2_cache_size", 1 << 20)
    images = max((some.stop - some.start for some in groups(network, pixels)), default=1)
    return max(2 * MIN_PIXELS, cache // (2 * images * max(network.widths) * dtype.itemsize) // 64 * 64)


def saved_like(network: Network, coords: Tensor, dtype: torch.dtype, pixel_chunk: int) -> list[Tensor]:
    """Uninitialised tensors of the shapes and dtypes that `forward` saves for the backward pass."""
    B, C = network.batch, network.freq.shape[0]
    saved = []
    for O, I in (weight.shape for weight in (*network.weights, *network.tap_weights)):
        saved += [coords.new_empty(B, O, I, dtype=dtype), coords.new_empty(O, dtype=dtype), coords.new_empty(B, O)]
    if pixel_chunk:
        return saved
    kept_widths = [*network.widths, *(network.widths[end] for end in network.blocks)]
    images = groups(network, coords.shape[1])
    for chunk in training_chunks(network, coords.shape[1], dtype):
        n = chunk.stop - chunk.start
        saved.append(coords.new_empty(len(coords), n, 2 * C, dtype=dtype))
        saved += [coords.new_empty(some.stop - some.start, n, O, dtype=dtype) for some in images for O in kept_widths]
    return saved

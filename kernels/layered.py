"""A whole network layer by layer, forward and backward, in chunks of pixels.

All layers run over one chunk of pixels before the next chunk begins, so that a launch reads from L2 what the launch
before it wrote. In the backward pass the kernel that computes the gradient of a layer's input also does everything else
that the layer below needs (mod_fc_bwd.py), so only matrix products go over the activations. The gradients of the
weights are summed over the chunks in place.

A residual block, (y + x)/√2, ends in the epilogue of its second layer, which also stores the sign of y for lrelu'. In
the backward pass, the epilogue that computes the gradient of the block's output divides it by √2 and passes it on to
both y and x.

    B images   P pixels   C channels of each half of the encoding   L layers   n pixels of a chunk
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .device import architecture
from .embedding import embedding_bwd_coords, embedding_bwd_table
from .formulas import LRELU_GAIN
from .fourier import fourier_bwd_coords, fourier_bwd_freq, fourier_fwd
from .mod_fc import mod_fc_fwd
from .mod_fc_bwd import mod_fc_dgrad, mod_fc_wgrad
from .modulate import modulate_bwd, modulate_fwd
from .network import Network
from .tiles import chunk_pixels

# The number of a chunk's tensors that have to fit in L2 together; residual blocks have one more. Forward they are a
# layer's input and output. Backward it is only the gradient: activations come from memory, and larger chunks mean fewer
# passes over the gradients of the weights.
FORWARD_TENSORS = 2
BACKWARD_TENSORS = 1


@dataclass(frozen=True)
class Weights:
    """Modulated weights of a network, in the compute dtype."""

    layers: list[Tensor]  # [B, O, I], including the gain
    layer_scales: list[Tensor]  # demodulation coefficients, float32 [B, O]
    taps: list[Tensor]  # [B, 3, O]
    tap_scales: list[Tensor]
    shortcuts: list[Tensor]  # [B, O, I], not modulated

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return [*self.layers, *self.layer_scales, *self.taps, *self.tap_scales, *self.shortcuts]

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor], network: Network) -> tuple["Weights", list[Tensor]]:
        """The weights from what `tensors` returned for this network, and the tensors that follow them."""
        rest = iter(tensors)
        layers, taps = len(network.weights), len(network.tap_weights)
        counts = (layers, layers, taps, taps, len(network.shortcuts))
        return Weights(*([next(rest) for _ in range(count)] for count in counts)), list(rest)


@dataclass(frozen=True)
class Activations:
    """What the backward pass needs for a range of pixels."""

    x0: Tensor  # [B|1, n, 2C]
    layers: list[Tensor]  # every layer's output; for the last layer of a block, the output of the block [B, n, O]
    signs: list[Tensor]  # for every residual block: where y in (y + x)/√2 is positive, uint8 [B, n, O]

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return [self.x0, *self.layers, *self.signs]

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor], network: Network) -> "Activations":
        """The activations from what `tensors` returned for this network."""
        layers = len(network.weights)
        return Activations(tensors[0], list(tensors[1 : 1 + layers]), list(tensors[1 + layers :]))

    @staticmethod
    def empty(network: Network, x0: Tensor) -> "Activations":
        """Uninitialised memory for the activations that follow an encoding [B|1, n, 2C]."""
        shape, widths = (network.batch, x0.shape[1]), network.widths
        layers = [x0.new_empty(*shape, width) for width in widths]
        signs = [x0.new_empty(*shape, widths[end], dtype=torch.uint8) for end in network.blocks]
        return Activations(x0, layers, signs)

    def part(self, start: int, end: int) -> "Activations":
        """The activations of the pixels from `start` to `end`."""
        parts = ([t[:, start:end] for t in tensors] for tensors in (self.layers, self.signs))
        return Activations(self.x0[:, start:end], *parts)


@dataclass(frozen=True)
class Points:
    """Coordinates, and where the embedding table is read: dense float32 [B|1, P, D] and [B|1, P, 2]."""

    coords: Tensor
    table_coords: Tensor

    @staticmethod
    def of(coords: Tensor, table_coords: Tensor) -> "Points":
        """Points from tensors with any strides."""
        return Points(coords.contiguous(), table_coords.contiguous())

    def part(self, start: int, end: int) -> "Points":
        """The points of the pixels from `start` to `end`."""
        return Points.of(self.coords[:, start:end], self.table_coords[:, start:end])


def modulate(network: Network, dtype: torch.dtype) -> Weights:
    """All of a network's modulated weights."""
    layers = [
        modulate_fwd(weight, style, demodulate=True, gain=LRELU_GAIN, dtype=dtype)
        for weight, style in zip(network.weights, network.styles, strict=True)
    ]
    taps = [
        modulate_fwd(weight, style, demodulate=False, gain=1.0, dtype=dtype)
        for weight, style in zip(network.tap_weights, network.tap_styles, strict=True)
    ]
    # Copies, even for one image: `expand` would return a view, and an operator may not return a view of its input.
    shortcuts = [w.to(dtype).repeat(network.batch, 1, 1) for w in network.shortcuts]
    return Weights(*_columns(layers), *_columns(taps), shortcuts)


def infer(network: Network, coords: Tensor, table_coords: Tensor | None = None, *, dtype: torch.dtype) -> Tensor:
    """Colours at coordinates, float32 [B, P, 3], without gradients; the arguments are those of `stack.infer`."""
    rgb = torch.empty(network.batch, coords.shape[1], 3, dtype=torch.float32, device=coords.device)
    points = Points.of(coords, coords if table_coords is None else table_coords)
    forward_in_chunks(network, modulate(network, dtype), points, rgb)
    return rgb


def forward_in_chunks(network: Network, weights: Weights, points: Points, rgb: Tensor) -> None:
    """Write the colours to `rgb`, float32 [B, P, 3], and keep nothing: memory holds the activations of one chunk."""
    dtype = weights.layers[0].dtype
    for start, end in ranges(rgb.shape[1], _chunk(network, FORWARD_TENSORS, dtype)):
        x0 = encode(network, points.part(start, end), dtype)
        _forward_chunk(network, weights, x0, rgb[:, start:end], None)


def encode(network: Network, points: Points, dtype: torch.dtype) -> Tensor:
    """The first layer's input [B|1, n, 2C]."""
    rows, table_coords = points.coords.flatten(0, 1), points.table_coords.flatten(0, 1)
    x0 = fourier_fwd(
        rows, network.freq, network.phase, table_coords, network.table, align_corners=network.align_corners, dtype=dtype
    )
    return x0.unflatten(0, points.coords.shape[:2])


def forward(network: Network, weights: Weights, x0: Tensor, rgb: Tensor | None) -> Activations:
    """Run all layers and keep their outputs.

    Args:
        network: only its biases are used.
        weights: its modulated weights.
        x0: encoded coordinates [B|1, n, 2C].
        rgb: where to write the colours, float32 [B, n, 3]; None if they are not needed.

    Returns:
        x0 and the outputs of all layers.
    """
    kept = Activations.empty(network, x0)
    for start, end in ranges(x0.shape[1], _chunk(network, FORWARD_TENSORS, x0.dtype)):
        part = kept.part(start, end)
        _forward_chunk(network, weights, part.x0, None if rgb is None else rgb[:, start:end], part)
    return kept


def _forward_chunk(network: Network, weights: Weights, x: Tensor, rgb: Tensor | None, kept: Activations | None) -> None:
    """Run all layers for a chunk of pixels; write their outputs to `kept`, and the colours to `rgb`, if given."""
    taps = {} if rgb is None else dict(zip(network.tapped, weights.taps, strict=True))
    blocks = network.blocks
    signs = {} if kept is None else dict(zip(blocks, kept.signs, strict=True))
    parts, before = [], x
    for index, (w, bias) in enumerate(zip(weights.layers, network.biases, strict=True)):
        around, shortcut = before if index in blocks else None, blocks.get(index)
        if shortcut is not None:
            around, _ = mod_fc_fwd(before, weights.shortcuts[shortcut], None, lrelu=False)
        before = x
        x, part = mod_fc_fwd(
            x,
            w,
            bias,
            lrelu=True,
            gain=LRELU_GAIN,
            around=around,
            rgb_w=taps.get(index),
            y=None if kept is None else kept.layers[index],
            signs=signs.get(index),
        )
        parts += [] if part is None else [part]
    if rgb is not None:
        tap_bias = torch.stack([bias.float() for bias in network.tap_biases]).sum(0)
        rgb.copy_(torch.cat(parts).sum(0).add_(tap_bias))


class Gradients:
    """Gradients of a network, summed over ranges of pixels.

    Args:
        network: the parameters.
        weights: its modulated weights.
        points: the points of all pixels.
        want_coords: also compute the gradients of the points.
    """

    def __init__(self, network: Network, weights: Weights, points: Points, *, want_coords: bool):
        self.network, self.weights, self.points = network, weights, points
        self.layer_parts: list[Tensor | None] = [None] * len(weights.layers)  # float32 [B, splits, O, I]
        self.tap_parts: list[Tensor | None] = [None] * len(weights.taps)
        self.bias_parts: list[list[Tensor]] = [[] for _ in weights.layers]  # float32 [parts, O]
        self.shortcut_parts: list[Tensor | None] = [None] * len(weights.shortcuts)
        self.freq = torch.zeros_like(network.freq, dtype=torch.float32)
        self.phase = torch.zeros_like(network.phase, dtype=torch.float32)
        self.table: Tensor | None = None
        self.coords = torch.empty_like(points.coords) if want_coords else None
        self.table_coords = torch.empty_like(points.table_coords) if want_coords else None

    def add(self, start: int, end: int, activations: Activations, drgb: Tensor) -> None:
        """Add the gradients from the pixels from `start` to `end`: drgb [B, end - start, 3]."""
        dx0 = torch.empty_like(activations.x0)
        for first, last in ranges(end - start, _chunk(self.network, BACKWARD_TENSORS, dx0.dtype)):
            self._add_layers(
                activations.part(first, last), drgb[:, first:last].float().contiguous(), dx0[:, first:last]
            )
        self._add_encoding(start, end, dx0)

    def recompute(self, pixel_chunk: int, drgb: Tensor, dtype: torch.dtype) -> None:
        """Add the gradients from all pixels, and recompute their activations chunk by chunk: drgb [B, P, 3]."""
        for start, end in ranges(drgb.shape[1], pixel_chunk):
            x0 = encode(self.network, self.points.part(start, end), dtype)
            activations = forward(self.network, self.weights, x0, None)
            self.add(start, end, activations, drgb[:, start:end])

    def _add_layers(self, activations: Activations, drgb: Tensor, dx0: Tensor) -> None:
        network, weights, blocks = self.network, self.weights, self.network.blocks
        colours, outputs = drgb.to(dx0.dtype), activations.layers
        for tap, index in enumerate(network.tapped):
            self.tap_parts[tap] = mod_fc_wgrad(colours, outputs[index], self.tap_parts[tap])
        taps = dict(zip(network.tapped, weights.taps, strict=True))
        signs = dict(zip(blocks, activations.signs, strict=True))
        # Only a tap reads the last layer. Its gradient comes through the tap as through a layer.
        last = len(outputs) - 1
        dz, w = colours, taps.pop(last)
        around = passed = None
        for index in range(last, -1, -1):
            y, x = outputs[index], outputs[index - 1] if index else activations.x0
            if index in signs:
                passed = torch.empty_like(y, memory_format=torch.contiguous_format)
            tap = taps.get(index)
            dz, sums = mod_fc_dgrad(
                dz,
                w,
                around=around,
                below=signs.get(index, y),
                drgb=None if tap is None else drgb,
                rgb_w=tap,
                want_sums=True,
                passed=passed if index in signs else None,
            )
            self.bias_parts[index].append(sums)
            self.layer_parts[index] = mod_fc_wgrad(dz, x, self.layer_parts[index])
            around = self._around(passed, x, blocks[index + 1]) if index + 1 in signs else None
            w = weights.layers[index]
        mod_fc_dgrad(dz, w, shared=dx0.shape[0] != network.batch, dx=dx0)

    def _around(self, passed: Tensor, x: Tensor, shortcut: int | None) -> Tensor:
        """The gradient of a residual block's input x that does not come through the block's layers."""
        if shortcut is None:
            return passed
        self.shortcut_parts[shortcut] = mod_fc_wgrad(passed, x, self.shortcut_parts[shortcut])
        return mod_fc_dgrad(passed, self.weights.shortcuts[shortcut])[0]

    def _add_encoding(self, start: int, end: int, dx0: Tensor) -> None:
        network, part = self.network, self.points.part(start, end)
        C = network.freq.shape[0]
        rows, coords, table_coords = dx0.flatten(0, 1), part.coords.flatten(0, 1), part.table_coords.flatten(0, 1)
        dwaves, dread = rows[:, :C], rows[:, C:]
        dfreq, dphase = fourier_bwd_freq(dwaves, coords, network.freq, network.phase)
        self.freq += dfreq
        self.phase += dphase
        align = network.align_corners
        self.table = embedding_bwd_table(dread, table_coords, network.table.shape, align_corners=align, into=self.table)
        if self.coords is not None:
            shape = self.coords[:, start:end].shape[:2]
            dcoords = fourier_bwd_coords(dwaves, coords, network.freq, network.phase)
            self.coords[:, start:end] = dcoords.unflatten(0, shape)
            dtable_coords = embedding_bwd_coords(dread, table_coords, network.table, align_corners=align)
            self.table_coords[:, start:end] = dtable_coords.unflatten(0, shape)

    def of_network(self, drgb: Tensor) -> Network:
        """The gradients as a network, each where its parameter is, and of its dtype: drgb of all pixels [B, P, 3]."""
        network, weights = self.network, self.weights
        layers = [
            modulate_bwd(dw, weight, style, d, demodulate=True, gain=LRELU_GAIN)
            for dw, weight, style, d in zip(
                self.layer_parts, network.weights, network.styles, weights.layer_scales, strict=True
            )
        ]
        taps = [
            modulate_bwd(dw, weight, style, d, demodulate=False, gain=1.0)
            for dw, weight, style, d in zip(
                self.tap_parts, network.tap_weights, network.tap_styles, weights.tap_scales, strict=True
            )
        ]
        (dweights, dstyles), (dtap_weights, dtap_styles) = _columns(layers), _columns(taps)
        biases = [LRELU_GAIN * torch.cat(parts).sum(0) for parts in self.bias_parts]
        # `contiguous`: the order of the sum must not depend on the strides that autograd chose. `clone`: two results of
        # an operator may not share memory.
        of_colours = drgb.contiguous().sum((0, 1), dtype=torch.float32)
        tap_biases = [of_colours.clone() for _ in taps]
        shortcuts = [parts.sum((0, 1)) for parts in self.shortcut_parts]
        ordered = [dweights, biases, dstyles, dtap_weights, tap_biases, dtap_styles, shortcuts]
        gradients = Network(self.freq, self.phase, self.table, *ordered, network.residual)
        pairs = zip(gradients.tensors(), network.tensors(), strict=True)
        return gradients.with_tensors([gradient.to(parameter.dtype) for gradient, parameter in pairs])


def _columns(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [first for first, _ in pairs], [second for _, second in pairs]


def ranges(count: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Start and end of consecutive chunks that cover `count` pixels; one empty chunk if `count` is 0."""
    return ((start, min(start + chunk, count)) for start in range(0, max(count, 1), chunk))


def _chunk(network: Network, tensors: int, dtype: torch.dtype) -> int:
    """The pixels of each image in a chunk, so that `tensors` tensors of it fit in L2."""
    device = network.freq.device
    return chunk_pixels(
        max(network.batch, 1), max(network.widths), tensors + network.residual, dtype, architecture(device)
    )

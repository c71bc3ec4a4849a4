"""A whole network layer by layer, forward and backward, in chunks of pixels.

Layers run over one chunk before the next, so that what one launch writes the next reads from L2. In the backward pass
the product that makes a layer's input gradient does all else that the layer below needs (mod_fc_bwd.py): no pass goes
over activations besides the products. Gradients of weights add up over chunks in place.

A residual block, (y + x)/√2, ends in the epilogue of its second layer, which also keeps the sign of y for lrelu'. Going
back, the epilogue that makes the gradient of the block's output hands it on, over √2, to both y and x.

    B images   P pixels   C channels of each half of the encoding   L layers   n pixels of a chunk
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .device import architecture
from .embedding import embedding_bwd_at, embedding_bwd_table
from .fourier import fourier_bwd_coords, fourier_bwd_freq, fourier_fwd
from .mod_fc import mod_fc_fwd
from .mod_fc_bwd import mod_fc_dgrad, mod_fc_wgrad
from .modulate import modulate_bwd, modulate_fwd
from .network import Network
from .tiles import chunk_pixels

GAIN = 2**0.5
# Tensors of a chunk that launches hand on to each other through L2: a layer's input and output; going back, where
# activations come from memory and every chunk costs a pass over the weights' gradients, the gradient alone. Residual
# blocks have one more.
FORWARD_TENSORS, BACKWARD_TENSORS = 2, 1


@dataclass(frozen=True)
class Weights:
    """Modulated weights of a network, in its compute dtype."""

    layers: list[Tensor]  # [B, O, I], the gain in them
    layer_scales: list[Tensor]  # demodulation coefficients, float32 [B, O]
    taps: list[Tensor]  # [B, 3, O]
    tap_scales: list[Tensor]
    shortcuts: list[Tensor]  # [B, O, I], not modulated

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return [*self.layers, *self.layer_scales, *self.taps, *self.tap_scales, *self.shortcuts]

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor], network: Network) -> tuple["Weights", list[Tensor]]:
        """What `tensors` gave for such a network, and the tensors that follow it."""
        rest = iter(tensors)
        layers, taps = len(network.weights), len(network.tap_weights)
        counts = (layers, layers, taps, taps, len(network.shortcuts))
        return Weights(*([next(rest) for _ in range(count)] for count in counts)), list(rest)


@dataclass(frozen=True)
class Activations:
    """What the backward pass needs of a range of pixels."""

    x0: Tensor  # [B|1, n, 2C]
    layers: list[Tensor]  # what every layer hands on, where a residual block ends its output [B, n, O]
    signs: list[Tensor]  # of every residual block: where its last layer's own output is positive, uint8 [B, n, O]

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return [self.x0, *self.layers, *self.signs]

    @staticmethod
    def from_tensors(tensors: Sequence[Tensor], network: Network) -> "Activations":
        """From `tensors`, of such a network."""
        layers = len(network.weights)
        return Activations(tensors[0], list(tensors[1 : 1 + layers]), list(tensors[1 + layers :]))

    @staticmethod
    def empty(network: Network, x0: Tensor) -> "Activations":
        """Memory for those that follow an encoding [B|1, n, 2C]."""
        shape, widths = (network.batch, x0.shape[1]), network.widths
        layers = [x0.new_empty(*shape, width) for width in widths]
        signs = [x0.new_empty(*shape, widths[end], dtype=torch.uint8) for end in network.blocks]
        return Activations(x0, layers, signs)

    def part(self, start: int, end: int) -> "Activations":
        """Some of the pixels."""
        parts = ([t[:, start:end] for t in tensors] for tensors in (self.layers, self.signs))
        return Activations(self.x0[:, start:end], *parts)


@dataclass(frozen=True)
class Points:
    """Coordinates, and where the table is read: dense float32 [B|1, P, D] and [B|1, P, 2]."""

    coords: Tensor
    at: Tensor

    @staticmethod
    def of(coords: Tensor, at: Tensor) -> "Points":
        """From tensors of any strides."""
        return Points(coords.contiguous(), at.contiguous())

    def part(self, start: int, end: int) -> "Points":
        """Some of the pixels."""
        return Points.of(self.coords[:, start:end], self.at[:, start:end])


def modulate(network: Network, dtype: torch.dtype) -> Weights:
    """All of a network's modulated weights."""
    layers = [
        modulate_fwd(weight, style, demodulate=True, gain=GAIN, dtype=dtype)
        for weight, style in zip(network.weights, network.styles, strict=True)
    ]
    taps = [
        modulate_fwd(weight, style, demodulate=False, gain=1.0, dtype=dtype)
        for weight, style in zip(network.tap_weights, network.tap_styles, strict=True)
    ]
    # Copies for a batch of any size: an operator may not return a view of its input, as expand gives for one image.
    shortcuts = [w.to(dtype).repeat(network.batch, 1, 1) for w in network.shortcuts]
    return Weights(*_columns(layers), *_columns(taps), shortcuts)


def render(network: Network, coords: Tensor, at: Tensor | None = None, *, dtype: torch.dtype) -> Tensor:
    """Colours at coordinates; the arguments are those of `stack.render`. Float32 [B, P, 3]."""
    rgb = torch.empty(network.batch, coords.shape[1], 3, dtype=torch.float32, device=coords.device)
    forward_in_chunks(network, modulate(network, dtype), Points.of(coords, coords if at is None else at), rgb)
    return rgb


def forward_in_chunks(network: Network, weights: Weights, points: Points, rgb: Tensor) -> None:
    """Write colours, float32 [B, P, 3], keeping nothing: memory for one chunk's activations, whatever P."""
    dtype = weights.layers[0].dtype
    for start, end in ranges(rgb.shape[1], _chunk(network, FORWARD_TENSORS, dtype)):
        x0 = encode(network, points.part(start, end), dtype)
        _forward_chunk(network, weights, x0, rgb[:, start:end], None)


def encode(network: Network, points: Points, dtype: torch.dtype) -> Tensor:
    """The first layer's input [B|1, n, 2C]."""
    rows, at = points.coords.flatten(0, 1), points.at.flatten(0, 1)
    x0 = fourier_fwd(
        rows, network.freq, network.phase, at, network.table, align_corners=network.align_corners, dtype=dtype
    )
    return x0.unflatten(0, points.coords.shape[:2])


def forward(network: Network, weights: Weights, x0: Tensor, rgb: Tensor | None) -> Activations:
    """All layers, their outputs kept.

    Args:
        network: its biases count.
        weights: its modulated weights.
        x0: encoded coordinates [B|1, n, 2C].
        rgb: where the colours go, float32 [B, n, 3]; None if they are known.

    Returns:
        x0 and the outputs of all layers.
    """
    kept = Activations.empty(network, x0)
    for start, end in ranges(x0.shape[1], _chunk(network, FORWARD_TENSORS, x0.dtype)):
        part = kept.part(start, end)
        _forward_chunk(network, weights, part.x0, None if rgb is None else rgb[:, start:end], part)
    return kept


def _forward_chunk(network: Network, weights: Weights, x: Tensor, rgb: Tensor | None, kept: Activations | None) -> None:
    """All layers for pixels that fit in L2, written to `kept` if given."""
    taps = {} if rgb is None else dict(zip(network.tapped, weights.taps, strict=True))
    blocks = network.blocks
    signs = {} if kept is None else dict(zip(blocks, kept.signs, strict=True))
    parts, before = [], x
    for place, (w, bias) in enumerate(zip(weights.layers, network.biases, strict=True)):
        around, shortcut = before if place in blocks else None, blocks.get(place)
        if shortcut is not None:
            around, _ = mod_fc_fwd(before, weights.shortcuts[shortcut], None, lrelu=False)
        before = x
        x, part = mod_fc_fwd(
            x,
            w,
            bias,
            lrelu=True,
            gain=GAIN,
            around=around,
            rgb_w=taps.get(place),
            y=None if kept is None else kept.layers[place],
            signs=signs.get(place),
        )
        parts += [] if part is None else [part]
    if rgb is not None:
        tap_bias = torch.stack([bias.float() for bias in network.tap_biases]).sum(0)
        rgb.copy_(torch.cat(parts).sum(0).add_(tap_bias))


class Gradients:
    """Gradients of a network, added up over ranges of pixels.

    Args:
        network: its parameters.
        weights: its modulated weights.
        points: its coordinates [B|1, P, ...].
        want_coords: also the gradients of the coordinates and of where the table is read.
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
        self.at = torch.empty_like(points.at) if want_coords else None

    def add(self, start: int, end: int, activations: Activations, drgb: Tensor) -> None:
        """Go back through all layers for the pixels from `start` to `end`, drgb [B, end - start, 3]."""
        dx0 = torch.empty_like(activations.x0)
        for first, last in ranges(end - start, _chunk(self.network, BACKWARD_TENSORS, dx0.dtype)):
            self._add_layers(
                activations.part(first, last), drgb[:, first:last].float().contiguous(), dx0[:, first:last]
            )
        self._add_encoding(start, end, dx0)

    def recompute(self, pixel_chunk: int, drgb: Tensor, dtype: torch.dtype) -> None:
        """Go back for all pixels, whose activations nobody kept, a chunk after the other: drgb [B, P, 3]."""
        for start, end in ranges(drgb.shape[1], pixel_chunk):
            x0 = encode(self.network, self.points.part(start, end), dtype)
            activations = forward(self.network, self.weights, x0, None)
            self.add(start, end, activations, drgb[:, start:end])

    def _add_layers(self, activations: Activations, drgb: Tensor, dx0: Tensor) -> None:
        network, weights, blocks = self.network, self.weights, self.network.blocks
        colours, outputs = drgb.to(dx0.dtype), activations.layers
        for tap, place in enumerate(network.tapped):
            self.tap_parts[tap] = mod_fc_wgrad(colours, outputs[place], self.tap_parts[tap])
        taps = dict(zip(network.tapped, weights.taps, strict=True))
        signs = dict(zip(blocks, activations.signs, strict=True))
        # The last layer is tapped and read by nothing else: its gradient comes through the tap as through a layer.
        dz, w, last = colours, taps.pop(len(outputs) - 1), len(outputs) - 1
        around = passed = None
        for place in range(last, -1, -1):
            y, x = outputs[place], outputs[place - 1] if place else activations.x0
            if place in signs:
                passed = torch.empty_like(y, memory_format=torch.contiguous_format)
            tap = taps.get(place)
            dz, sums = mod_fc_dgrad(
                dz,
                w,
                around=around,
                below=signs.get(place, y),
                drgb=None if tap is None else drgb,
                rgb_w=tap,
                want_sums=True,
                passed=passed if place in signs else None,
            )
            self.bias_parts[place].append(sums)
            self.layer_parts[place] = mod_fc_wgrad(dz, x, self.layer_parts[place])
            around = self._around(passed, x, blocks[place + 1]) if place + 1 in signs else None
            w = weights.layers[place]
        mod_fc_dgrad(dz, w, shared=dx0.shape[0] != network.batch, dx=dx0)

    def _around(self, passed: Tensor, x: Tensor, shortcut: int | None) -> Tensor:
        """The gradient that comes to a residual block's input x around the block."""
        if shortcut is None:
            return passed
        self.shortcut_parts[shortcut] = mod_fc_wgrad(passed, x, self.shortcut_parts[shortcut])
        return mod_fc_dgrad(passed, self.weights.shortcuts[shortcut])[0]

    def _add_encoding(self, start: int, end: int, dx0: Tensor) -> None:
        network, part = self.network, self.points.part(start, end)
        C = network.freq.shape[0]
        rows, coords, at = dx0.flatten(0, 1), part.coords.flatten(0, 1), part.at.flatten(0, 1)
        dwaves, dread = rows[:, :C], rows[:, C:]
        dfreq, dphase = fourier_bwd_freq(dwaves, coords, network.freq, network.phase)
        self.freq += dfreq
        self.phase += dphase
        align = network.align_corners
        self.table = embedding_bwd_table(dread, at, network.table.shape, align_corners=align, into=self.table)
        if self.coords is not None:
            shape = self.coords[:, start:end].shape[:2]
            dcoords = fourier_bwd_coords(dwaves, coords, network.freq, network.phase)
            self.coords[:, start:end] = dcoords.unflatten(0, shape)
            dat = embedding_bwd_at(dread, at, network.table, align_corners=align)
            self.at[:, start:end] = dat.unflatten(0, shape)

    def of_network(self, drgb: Tensor) -> Network:
        """Gradients in the places of their parameters, of these dtypes: drgb of all pixels [B, P, 3]."""
        network, weights = self.network, self.weights
        layers = [
            modulate_bwd(dw, weight, style, d, demodulate=True, gain=GAIN)
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
        biases = [GAIN * torch.cat(parts).sum(0) for parts in self.bias_parts]
        # Of equal bits whatever strides autograd gave; one tensor for each, which no two results of an operator share.
        of_colours = drgb.contiguous().sum((0, 1), dtype=torch.float32)
        tap_biases = [of_colours.clone() for _ in taps]
        shortcuts = [parts.sum((0, 1)) for parts in self.shortcut_parts]
        ordered = [dweights, biases, dstyles, dtap_weights, tap_biases, dtap_styles, shortcuts]
        gradients = Network(self.freq, self.phase, self.table, *ordered, network.residual)
        pairs = zip(gradients.tensors(), network.tensors(), strict=True)
        return gradients.with_tensors([gradient.to(parameter.dtype) for gradient, parameter in pairs])


def _columns(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [first for first, _ in pairs], [second for _, second in pairs]


def ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of at most `step` that cover `count`; one empty range if that is 0."""
    return ((start, min(start + step, count)) for start in range(0, max(count, 1), step))


def _chunk(network: Network, tensors: int, dtype: torch.dtype) -> int:
    device = network.freq.device
    return chunk_pixels(
        max(network.batch, 1), max(network.widths), tensors + network.residual, dtype, architecture(device)
    )

"""A whole network from coordinates to colours, as one differentiable operation.

On backend `triton` a network is one operator with a fused backward pass (kernels/layered.py); without gradients it may
be one launch (kernels/stack.py). On backend `cpu` it is one operator, too (backends/cpu_network.py), in float32 and
bfloat16. Everything else is computed layer by layer: the reference, sine activations, noise, and pixel styles
(pixel_styles.py).
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import functional
from .backends import network_ops
from .backends.autocast import autocast_dtype
from .backends.choice import TRITON_DIMENSIONS, is_one_operator, resolve_backend
from .backends.chunks import chunks
from .checks import ArgumentError, check_choice, is_count, shown
from .kernels.network import Network
from .pixel_styles import mixed_fc

MAX_CHUNK_PIXELS = 1 << 40  # more than any image has
PIXEL_STYLES_CHUNK_PIXELS = 1 << 14  # pixels that go through all layers together if they have pixel styles


def synthesis(
    network: Network,
    coords: Tensor,
    table_coords: Tensor | None = None,
    *,
    mix: Tensor | None = None,
    activation: str = "lrelu",
    noise_strength: Tensor | None = None,
    pixel_chunk: int | None = None,
    backend: str = "auto",
    inference: str = "auto",
) -> Tensor:
    """Colours at coordinates.

    x₀ = [sin(F c + φ); E(c)], x_l = act(W'_l x_{l-1} + β_l), rgb = Σ_taps T' x_l + τ   (arXiv 2011.13775)

    Args:
        network: the parameters; see `Network`.
        coords: in the dtype of the parameters, or in float32 if they have fewer bits [B|1, P, D]. Coordinates that all
            images share are encoded once.
        table_coords: where the embedding table is read, x, y in [-1, 1] [B|1, P, 2]; by default at `coords`.
        mix: α [B, P, J], for pixel styles: the network's batch is then J anchors, and a pixel has the styles
            Σ_j α_j s_j, demodulated exactly. If α sums to 1, they are the styles of the latent Σ_j α_j w_j. See
            `pixel_styles`.
        activation: `lrelu`, `sin` or `sinrelu`, see `functional.mod_fc`.
        noise_strength: for each layer, the factor of the normal noise that it adds to its pixels before the bias [L].
        pixel_chunk: N, at least 1: save no activations, and recompute those of at most N pixels of every image at a
            time in the backward pass. Memory then holds the activations of one chunk at any image size, for a third
            more arithmetic. By default every layer's output is saved. The gradients differ only in the order of sums.
        backend: see `backends.choice`.
        inference: method of `triton` without gradients, `stack`, `layered` or `auto`: see `kernels.dispatch.infer`.

    Returns:
        [B, P, 3], where B is that of the network or of `mix`; float32, or float64 if the parameters are.

    Raises:
        ValueError: an argument is none of the above.
        TypeError: the backend does not take the dtype.
    """
    pixel_chunk = checked_chunk(pixel_chunk)
    check_choice("inference", inference, ("auto", "stack", "layered"))
    table_coords = coords if table_coords is None else table_coords
    if mix is not None:
        _check_mix(network, coords, mix, noise_strength)
    _check_points(network.batch if mix is None else len(mix), network.freq.shape[1], coords, table_coords)
    tensors = network.tensors()
    differentiated = torch.is_grad_enabled() and any(
        t.requires_grad for t in (coords, table_coords, *tensors, *([] if mix is None else [mix]))
    )
    dtype = autocast_dtype(coords) or network.weights[0].dtype
    chosen = resolve_backend(backend, coords.device, dtype)
    encodes = chosen != "triton" or coords.shape[-1] in TRITON_DIMENSIONS
    if not encodes and backend == "triton":
        raise ArgumentError("coords", f"got {coords.shape[-1]} dimensions, backend 'triton' takes 2 or 3")
    plain = activation == "lrelu" and noise_strength is None and mix is None
    if plain and encodes and is_one_operator(chosen, dtype):
        form = (len(network.weights), network.residual, network.align_corners)
        arguments = (coords.float(), table_coords.float(), tensors, *form, dtype, chosen)
        if not differentiated:
            return network_ops.infer(*arguments, inference)
        if torch.compiler.is_exporting() and pixel_chunk is None:
            # How many tensors the saved outputs of the layers are depends on the number of pixels, so the exported
            # program would take only this number. With `pixel_chunk` only the modulated weights are saved.
            pixel_chunk = MAX_CHUNK_PIXELS
        return network_ops.synthesis(*arguments, pixel_chunk or 0)[0]

    def colours(coords: Tensor, table_coords: Tensor, mix: Tensor | None = None) -> Tensor:
        encoder = chosen if encodes else "reference"
        return _layer_by_layer(network, coords, table_coords, mix, activation, noise_strength, chosen, encoder)

    points = (coords, table_coords) if mix is None else (coords, table_coords, mix.to(network.weights[0].dtype))
    if mix is not None and not differentiated:
        return _keeping_nothing(colours, points)
    return in_chunks(colours, points, pixel_chunk, random=noise_strength is not None)


def checked_chunk(pixel_chunk: int | None) -> int | None:
    """`pixel_chunk` as an int or None. Raises ValueError if it is neither None nor a number of pixels."""
    if pixel_chunk is None:
        return None
    if not is_count(pixel_chunk, MAX_CHUNK_PIXELS):
        wanted = "a whole number of at least 1, or None to keep all activations"
        raise ArgumentError("pixel_chunk", f"got {shown(pixel_chunk)}, must be {wanted}")
    return int(pixel_chunk)


def _check_points(batch: int, dims: int, coords: Tensor, table_coords: Tensor) -> None:
    if coords.dim() != 3 or coords.shape[0] not in (1, batch) or coords.shape[2] != dims:
        raise ArgumentError("coords", f"got shape {list(coords.shape)}, must be [{batch}|1, P, {dims}]")
    if table_coords.shape != (*coords.shape[:2], 2):
        raise ArgumentError("table_coords", f"got shape {list(table_coords.shape)}, must be {[*coords.shape[:2], 2]}")


def _check_mix(network: Network, coords: Tensor, mix: Tensor, noise_strength: Tensor | None) -> None:
    if noise_strength is not None:
        raise ArgumentError("mix", "got weights of anchors, must be None for a network with noise")
    if mix.dim() != 3 or mix.shape[1:] != (*coords.shape[1:2], network.batch):
        raise ArgumentError("mix", f"got shape {list(mix.shape)}, must be [B, {coords.shape[1]}, {network.batch}]")


def in_chunks(
    colours: Callable[..., Tensor], points: Sequence[Tensor], pixel_chunk: int | None, random: bool
) -> Tensor:
    """Colours of all pixels; with `pixel_chunk` in chunks, whose activations the backward pass recomputes."""
    if pixel_chunk is None:
        return colours(*points)
    parts = [
        checkpoint(colours, *part, use_reentrant=False, preserve_rng_state=random)  # without gradients, a plain call
        for part in zip(*(each.split(pixel_chunk, 1) for each in points), strict=True)
    ]
    return torch.cat(parts, 1)


def _keeping_nothing(colours: Callable[..., Tensor], points: Sequence[Tensor]) -> Tensor:
    """Colours of all pixels in chunks, without a backward pass: memory holds the activations of one chunk."""
    pieces = chunks(points[0].shape[1], PIXEL_STYLES_CHUNK_PIXELS) or [slice(0)]
    return torch.cat([colours(*(each[:, piece] for each in points)) for piece in pieces], 1)


def _layer_by_layer(
    network: Network,
    coords: Tensor,
    table_coords: Tensor,
    mix: Tensor | None,
    activation: str,
    noise_strength: Tensor | None,
    backend: str,
    encoder: str,
) -> Tensor:
    """Colours by one operation after another, each on its backend."""
    encoding = [t.to(coords.dtype) for t in (network.freq, network.phase, network.table)]
    dtype = autocast_dtype(coords) or network.weights[0].dtype
    x = functional.fourier_encode(
        coords, *encoding, table_coords=table_coords, align_corners=network.align_corners, dtype=dtype, backend=encoder
    )
    taps = iter(zip(network.tap_weights, network.tap_styles, network.tap_biases, strict=True))
    blocks, tapped = network.blocks, network.tapped
    rgb = 0
    block_input = x
    for index, layer in enumerate(zip(network.weights, network.styles, network.biases, strict=True)):
        if index + 1 in blocks:
            block_input = x
        if mix is not None:
            x = mixed_fc(x, *layer, mix, activation=activation, backend=backend)
        elif noise_strength is None:
            x = functional.mod_fc(x, *layer, activation=activation, backend=backend)
        else:
            x = functional.noisy_mod_fc(
                x, *layer, strength=noise_strength[index], activation=activation, backend=backend
            )
        if index in blocks:
            shortcut = blocks[index]
            around = block_input if shortcut is None else F.linear(block_input, network.shortcuts[shortcut])
            x = (x + around) / math.sqrt(2)
        if index in tapped:
            linear = {"demodulate": False, "activation": "linear", "backend": backend}
            if mix is not None:
                tap = mixed_fc(x, *next(taps), mix, **linear)
            else:
                tap = functional.mod_fc(x, *next(taps), **linear)
            rgb = rgb + tap.to(torch.promote_types(tap.dtype, torch.float32))
    return rgb

"""A whole network from coordinates to colours, as one differentiable operation.

On the kernels a network is one operator with a fused backward pass (kernels/layered.py), and where no gradient is
wanted it may be one launch (kernels/stack.py). On a CPU it is one operator too (cpu_synthesis.py), in float32 and
bfloat16. Everything else goes layer by layer: the reference, sine activations, noise, and styles that differ from
pixel to pixel (mixing.py).
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
from .backends.threads import slices
from .checks import ArgumentError, check_choice, is_count, shown
from .kernels.network import Network
from .pixel_styles import mixed_fc

LARGEST_CHUNK = 1 << 40  # pixels, more than any image has
MIXED = 1 << 14  # pixels that go through all layers at once where every one has a style of its own


def synthesis(
    network: Network,
    coords: Tensor,
    at: Tensor | None = None,
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
        network: its parameters; see `Network`.
        coords: of its parameters' dtype, or float32 where that has fewer bits [B|1, P, D]. What the batch shares is
            encoded once.
        at: where the table is read, x, y in [-1, 1] [B|1, P, 2]; the coordinates themselves unless given.
        mix: α, for styles that differ from pixel to pixel: the network's batch are then J anchors, and a pixel has the
            styles Σ_j α_j s_j, demodulated exactly, which are the latent Σ_j α_j w_j's if α sums to 1. See `mixing`.
            [B, P, J].
        activation: `lrelu`, `sin` or `sinrelu`, see `functional.mod_fc`.
        noise_strength: factors of normal noise that each layer adds to its pixels before the bias [L].
        pixel_chunk: N, at least 1. The backward pass computes the activations of at most N pixels of every image anew,
            one such chunk at a time, so that activation memory is one chunk's at any image size, for a third more
            arithmetic. Without it every layer's output is kept. Gradients are the same but for the order of sums.
        backend: see `backends.choice`.
        inference: how `triton` renders where no gradient is wanted, `stack`, `layered` or `auto`: see `planner.render`.

    Returns:
        [B, P, 3], B the network's or that of `mix`; float32, or float64 where the parameters are.

    Raises:
        ValueError: an argument that is none of the above; TypeError: a dtype that the backend does not take.
    """
    pixel_chunk = checked_chunk(pixel_chunk)
    check_choice("inference", inference, ("auto", "stack", "layered"))
    at = coords if at is None else at
    if mix is not None:
        _check_mix(network, coords, mix, noise_strength)
    _check_points(network.batch if mix is None else len(mix), network.freq.shape[1], coords, at)
    tensors = network.tensors()
    differentiated = torch.is_grad_enabled() and any(
        t.requires_grad for t in (coords, at, *tensors, *([] if mix is None else [mix]))
    )
    dtype = autocast_dtype(coords) or network.weights[0].dtype
    chosen = resolve_backend(backend, coords.device, dtype)
    encodes = chosen != "triton" or coords.shape[-1] in TRITON_DIMENSIONS
    if not encodes and backend == "triton":
        raise ArgumentError("coords", f"got {coords.shape[-1]} dimensions, backend 'triton' takes 2 or 3")
    plain = activation == "lrelu" and noise_strength is None and mix is None
    if plain and encodes and is_one_operator(chosen, dtype):
        form = (len(network.weights), network.residual, network.align_corners)
        arguments = (coords.float(), at.float(), tensors, *form, dtype, chosen)
        if not differentiated:
            return network_ops.render(*arguments, inference)
        if torch.compiler.is_exporting() and pixel_chunk is None:
            # Layers' outputs would be kept in as many tensors as this number of pixels asks for, and no other number
            # could be given to the program. Modulated weights alone are as many for all.
            pixel_chunk = LARGEST_CHUNK
        return network_ops.synthesis(*arguments, pixel_chunk or 0)[0]

    def colours(coords: Tensor, at: Tensor, mix: Tensor | None = None) -> Tensor:
        encoder = chosen if encodes else "reference"
        return _layer_by_layer(network, coords, at, mix, activation, noise_strength, chosen, encoder)

    points = (coords, at) if mix is None else (coords, at, mix.to(network.weights[0].dtype))
    if mix is not None and not differentiated:
        return _without_memory(colours, points)
    return in_chunks(colours, points, pixel_chunk, random=noise_strength is not None)


def checked_chunk(pixel_chunk: int | None) -> int | None:
    """The number as an int. Raise ValueError unless `pixel_chunk` is None or a number of pixels."""
    if pixel_chunk is None:
        return None
    if not is_count(pixel_chunk, LARGEST_CHUNK):
        wanted = "a whole number of at least 1, or None to keep all activations"
        raise ArgumentError("pixel_chunk", f"got {shown(pixel_chunk)}, must be {wanted}")
    return int(pixel_chunk)


def _check_points(batch: int, dims: int, coords: Tensor, at: Tensor) -> None:
    if coords.dim() != 3 or coords.shape[0] not in (1, batch) or coords.shape[2] != dims:
        raise ArgumentError("coords", f"got shape {list(coords.shape)}, must be [{batch}|1, P, {dims}]")
    if at.shape != (*coords.shape[:2], 2):
        raise ArgumentError(
            "at", f"got shape {list(at.shape)}, must be {[*coords.shape[:2], 2]}, where the table is read"
        )


def _check_mix(network: Network, coords: Tensor, mix: Tensor, noise_strength: Tensor | None) -> None:
    if noise_strength is not None:
        raise ArgumentError("mix", "got weights of anchors for a network with noise, which takes one style an image")
    if mix.dim() != 3 or mix.shape[1:] != (*coords.shape[1:2], network.batch):
        raise ArgumentError("mix", f"got shape {list(mix.shape)}, must be [B, {coords.shape[1]}, {network.batch}]")


def in_chunks(
    colours: Callable[..., Tensor], points: Sequence[Tensor], pixel_chunk: int | None, random: bool
) -> Tensor:
    """Colours of all pixels; in chunks, of which the backward pass holds one at a time."""
    if pixel_chunk is None:
        return colours(*points)
    parts = [
        checkpoint(colours, *part, use_reentrant=False, preserve_rng_state=random)  # without gradients, a mere call
        for part in zip(*(each.split(pixel_chunk, 1) for each in points), strict=True)
    ]
    return torch.cat(parts, 1)


def _without_memory(colours: Callable[..., Tensor], points: Sequence[Tensor]) -> Tensor:
    """Colours of all pixels, a chunk after another, where nothing is kept for a backward pass."""
    pieces = slices(points[0].shape[1], MIXED) or [slice(0)]
    return torch.cat([colours(*(each[:, piece] for each in points)) for piece in pieces], 1)


def _layer_by_layer(
    network: Network,
    coords: Tensor,
    at: Tensor,
    mix: Tensor | None,
    activation: str,
    noise_strength: Tensor | None,
    backend: str,
    encoder: str,
) -> Tensor:
    encoding = [t.to(coords.dtype) for t in (network.freq, network.phase, network.table)]
    dtype = autocast_dtype(coords) or network.weights[0].dtype
    x = functional.fourier_encode(
        coords, *encoding, table_coords=at, align_corners=network.align_corners, dtype=dtype, backend=encoder
    )
    taps = iter(zip(network.tap_weights, network.tap_styles, network.tap_biases, strict=True))
    shortcuts = iter(network.shortcuts)
    rgb, before = 0, x
    for place, layer in enumerate(zip(network.weights, network.styles, network.biases, strict=True)):
        before = x if place % 2 else before
        if mix is not None:
            x = mixed_fc(x, *layer, mix, activation=activation, backend=backend)
        elif noise_strength is None:
            x = functional.mod_fc(x, *layer, activation=activation, backend=backend)
        else:
            x = functional.noisy_mod_fc(
                x, *layer, strength=noise_strength[place], activation=activation, backend=backend
            )
        if network.residual and place and place % 2 == 0:
            around = before if before.shape[-1] == x.shape[-1] else F.linear(before, next(shortcuts))
            x = (x + around) / math.sqrt(2)
        if place in network.tapped:
            linear = {"demodulate": False, "activation": "linear", "backend": backend}
            if mix is not None:
                tap = mixed_fc(x, *next(taps), mix, **linear)
            else:
                tap = functional.mod_fc(x, *next(taps), **linear)
            rgb = rgb + tap.to(torch.promote_types(tap.dtype, torch.float32))
    return rgb

"""The public operations of one layer: argument checks, and the choice of the backend that computes them.

The backends are `auto`, `triton`, `cpu` and `reference`; `cips_fast.backends.choice` describes them.
"""

import torch
from torch import Tensor

from . import reference as ref
from .backends import cpu_layer, cpu_ops, triton_ops
from .backends.autocast import autocast_dtype, without_autocast
from .backends.choice import BACKENDS, is_one_operator, resolve_backend, resolve_encoding_backend
from .checks import ArgumentError, check_choice

__all__ = ["BACKENDS", "fourier_encode", "mod_fc", "modulate", "noisy_mod_fc"]


def modulate(weight: Tensor, style: Tensor, *, demodulate: bool = True, backend: str = "auto") -> Tensor:
    """Modulate a weight matrix by a style and demodulate it.

    W'[b,o,i] = W[o,i]·s[b,i]/√I, then W'[b,o,:] /= sqrt(Σ_i W'[b,o,i]² + 1e-8)   (Karras et al., arXiv 1912.04958)

    Args:
        weight: raw weights, drawn N(0, 1), floating [O, I].
        style: scales of the inputs for every sample, in the weight's dtype [B, I].
        demodulate: normalise every output's weights to unit length.
        backend: `auto`, `triton`, `cpu` (here the same as `reference`) or `reference`.

    Returns:
        Modulated weights in the weight's dtype [B, O, I].

    Raises:
        ValueError: a shape, device or backend does not fit.
        TypeError: a tensor is not floating, or its dtype does not fit the others or the backend.
    """
    _check_weight_and_style(weight, style)
    _check_dtype("style", style, weight)
    if resolve_backend(backend, weight.device, weight.dtype) == "triton":
        return triton_ops.modulate(weight, style, demodulate)[0]
    return ref.modulate_ref(weight, style, demodulate)


def mod_fc(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor | None = None,
    *,
    demodulate: bool = True,
    activation: str = "lrelu",
    backend: str = "auto",
) -> Tensor:
    """Apply a fully-connected layer, whose weights are modulated by a style, to every pixel.

    y = activation(W' x + β),  W' = modulate(W, s)   (Anokhin et al., arXiv 2011.13775, section 3)

    Args:
        x: features, floating [B, P, I], or [1, P, I] if all images share them.
        weight: raw weights, drawn N(0, 1), in x's dtype unless under autocast [O, I].
        style: in the weight's dtype [B, I].
        bias: floating [O].
        demodulate: normalise every output's modulated weights to unit length.
        activation: `lrelu` √2·lrelu₀.₂, `linear`, `sin`, or `sinrelu` (√2·[lrelu₀.₂ of even channels; sine of odd]).
        backend: `auto`, `triton`, `cpu` or `reference`. On `triton` sines are a separate pass, see kernels/mod_fc.py.

    Returns:
        Features [B, P, O]. Under autocast they have its dtype, as after `torch.nn.Linear`.

    Raises:
        ValueError: a shape, device, activation or backend does not fit.
        TypeError: a tensor is not floating, or its dtype does not fit the others or the backend.
    """
    _check_weight_and_style(weight, style)
    _check_floating("x", x)
    if x.dim() != 3 or x.shape[2] != weight.shape[1]:
        batch = f"{style.shape[0]}|1" if style.shape[0] != 1 else "1"
        raise ArgumentError("x", f"got shape {list(x.shape)}, must be [{batch}, P, {weight.shape[1]}]")
    if x.shape[0] not in (1, style.shape[0]):
        wanted = [x.shape[0], weight.shape[1]]
        raise ArgumentError("style", f"got shape {list(style.shape)} for x {list(x.shape)}, must be {wanted}")
    _check_device("x", x, weight)
    if bias is not None:
        _check_floating("bias", bias)
        _check_device("bias", bias, weight)
        if bias.shape != weight.shape[:1]:
            raise ArgumentError("bias", f"got shape {list(bias.shape)}, must be [{weight.shape[0]}]")
    check_choice("activation", activation, ref.ACTIVATIONS)
    if activation == "sinrelu" and weight.shape[0] % 2:
        raise ArgumentError("weight", f"got {weight.shape[0]} outputs, activation 'sinrelu' needs an even number")
    dtype = autocast_dtype(x)
    if dtype is None:
        _check_dtype("x", x, weight)
        _check_dtype("style", style, weight)
        dtype = x.dtype
    chosen, lrelu = resolve_backend(backend, x.device, dtype), activation == "lrelu"
    if chosen == "triton":
        y = triton_ops.mod_fc(x.to(dtype), weight, style, bias, demodulate, lrelu)[0]
        return y if lrelu else ref.activate_ref(y, activation)
    if activation in ("lrelu", "linear") and is_one_operator(chosen, dtype):
        return cpu_ops.mod_fc(x.to(dtype), weight, style, bias, demodulate, lrelu)[0]
    layer = cpu_layer.mod_fc_cpu if chosen == "cpu" else ref.mod_fc_ref
    return layer(x, weight, style, bias, demodulate, activation)


def noisy_mod_fc(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor | None,
    *,
    strength: Tensor,
    demodulate: bool = True,
    activation: str = "lrelu",
    backend: str = "auto",
) -> Tensor:
    """`mod_fc` with noise: activation(W' x + strength·n + β), n drawn N(0, 1), one number per pixel.

    Args, Returns and Raises as in `mod_fc`; strength [].
    """
    y = mod_fc(x, weight, style, demodulate=demodulate, activation="linear", backend=backend)
    noise = torch.randn(*y.shape[:2], 1, dtype=y.dtype, device=y.device) * strength
    y = y + noise.to(y.dtype)
    return ref.activate_ref(y if bias is None else y + bias.to(y.dtype), activation)


def fourier_encode(
    coords: Tensor,
    freq: Tensor,
    phase: Tensor,
    table: Tensor | None = None,
    *,
    table_coords: Tensor | None = None,
    align_corners: bool = True,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Encode coordinates by learned Fourier features and, with a table, by its bilinear read.

    sin(F c + φ), or [sin(F c + φ); E(c)]   (Anokhin et al., arXiv 2011.13775, section 3)

    Args:
        coords: [B, P, D] or [1, P, D], any range; the usual one is [-1, 1]. `triton` takes D of 2 or 3; for
            any other D `auto` is `reference` on a GPU.
        freq: F, radians per unit of coordinate, floating; all other tensors have its dtype [C, D].
        phase: φ, radians [C].
        table: the embedding table E [H, W, C].
        table_coords: where the table is read, x, y in [-1, 1]; beyond that range its border is read [B, P, 2]. By
            default it is read at `coords`.
        align_corners: -1 and 1 are the centres of the table's outermost cells, else their outer edges.
        dtype: dtype of the result; by default that of `coords`. The argument of the sine is never rounded to it.
        backend: `auto`, `triton`, `cpu` or `reference`. The error of a sine on `triton` is at most 1e-5 for arguments
            up to 1e4, including the error of the product of coordinate and frequency.

    Returns:
        Features [B, P, C], or [B, P, 2C] with a table.

    Raises:
        ValueError: a shape, device or backend does not fit.
        TypeError: a tensor is not floating, or its dtype does not fit the others or the backend.
    """
    named = {"coords": coords, "freq": freq, "phase": phase, "table": table, "table_coords": table_coords}
    for name, tensor in named.items():
        if tensor is not None:
            _check_floating(name, tensor)
            _check_device(name, tensor, freq)
            _check_dtype(name, tensor, freq)
    if freq.dim() != 2 or phase.shape != freq.shape[:1]:
        raise ArgumentError(
            "phase", f"got shape {list(phase.shape)} for freq {list(freq.shape)}, must be [C] and [C, D]"
        )
    if coords.dim() != 3 or coords.shape[2] != freq.shape[1]:
        raise ArgumentError("coords", f"got shape {list(coords.shape)}, must be [B, P, {freq.shape[1]}]")
    if table is None and table_coords is not None:
        raise ArgumentError("table_coords", "given without a table")
    read_at = coords if table_coords is None else table_coords
    if table is not None:
        if table.dim() != 3 or table.shape[2] != freq.shape[0] or 0 in table.shape:
            raise ArgumentError("table", f"got shape {list(table.shape)}, must be [H, W, {freq.shape[0]}]")
        if read_at.shape != (*coords.shape[:2], 2):
            name = "coords" if table_coords is None else "table_coords"
            raise ArgumentError(
                name, f"got shape {list(read_at.shape)}, must be {[*coords.shape[:2], 2]} to read the table"
            )
    chosen = resolve_encoding_backend(backend, freq.device, freq.dtype, freq.shape[1])
    # Under autocast F c would be rounded to 8 bits before the sine, and with it the position of every pixel.
    with without_autocast(coords):
        if is_one_operator(chosen, freq.dtype):
            rows = coords.flatten(0, 1).float()
            points = None if table is None else read_at.flatten(0, 1).float()
            operator = triton_ops.fourier if chosen == "triton" else cpu_ops.fourier
            out = operator(rows, freq, phase, points, table, align_corners, dtype or coords.dtype)
            return out.unflatten(0, coords.shape[:2])
        encoded = ref.fourier_encode_ref(coords, freq, phase)
        if table is not None:
            encoded = torch.cat([encoded, ref.embed_coords_ref(read_at, table, align_corners)], -1)
        return encoded if dtype is None else encoded.to(dtype)


def _check_weight_and_style(weight: Tensor, style: Tensor) -> None:
    _check_floating("weight", weight)
    _check_floating("style", style)
    _check_device("style", style, weight)
    if weight.dim() != 2 or 0 in weight.shape:
        raise ArgumentError("weight", f"got shape {list(weight.shape)}, must be [O, I]")
    if style.dim() != 2 or style.shape[1] != weight.shape[1]:
        raise ArgumentError("style", f"got shape {list(style.shape)}, must be [B, {weight.shape[1]}]")


def _check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: got dtype {tensor.dtype}, must be floating")


def _check_dtype(name: str, tensor: Tensor, weight: Tensor) -> None:
    if tensor.dtype != weight.dtype:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, must be {weight.dtype} like the weights")


def _check_device(name: str, tensor: Tensor, weight: Tensor) -> None:
    if tensor.device != weight.device:
        raise ArgumentError(name, f"got device {tensor.device}, must be {weight.device} like the weights")

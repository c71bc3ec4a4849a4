"""Public operations, one layer each: argument checks and the choice of backend.

Backends: `reference` is the eager specification, for any device; `cpu` is the same maths arranged for CPU tensors;
`auto` is `cpu` for CPU tensors and `reference` elsewhere. A backend that is asked for by name is used or refused.
"""

import torch
from torch import Tensor

from . import reference as ref
from .cpu import embed_coords_cpu, mod_fc_cpu

BACKENDS = ("auto", "cpu", "reference")


def modulate(weight: Tensor, style: Tensor, *, demodulate: bool = True) -> Tensor:
    """Modulate a weight matrix by a style and demodulate it.

    W'[b,o,i] = W[o,i]·s[b,i]/√I, then W'[b,o,:] /= sqrt(Σ_i W'[b,o,i]² + 1e-8)   (Karras et al., arXiv 1912.04958)

    Args:
        weight: raw weights, drawn N(0, 1), floating [O, I].
        style: per-sample scales of the inputs, the weight's dtype [B, I].
        demodulate: normalise every output's weights to unit length.

    Returns:
        Modulated weights [B, O, I].

    Raises:
        ValueError: a shape does not fit, or the tensors lie on different devices.
        TypeError: a tensor is not floating.
    """
    _check_weight_and_style(weight, style)
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
    """Apply a fully-connected layer whose weights a style modulates to every pixel.

    y = activation(W' x + β),  W' = modulate(W, s)   (Anokhin et al., arXiv 2011.13775, section 3)

    Args:
        x: features, floating [B, P, I], or [1, P, I] shared by the batch.
        weight: raw weights, drawn N(0, 1), floating [O, I].
        style: floating [B, I].
        bias: floating [O].
        demodulate: normalise every output's modulated weights to unit length.
        activation: `lrelu` √2·lrelu₀.₂, `linear`, `sin`, or `sinrelu` (√2·[lrelu₀.₂ of even channels; sine of odd]).
        backend: `auto`, `cpu` or `reference`.

    Returns:
        Features [B, P, O]. Under autocast they have its dtype, as after `torch.nn.Linear`.

    Raises:
        ValueError: a shape, device, activation or backend does not fit.
        TypeError: a tensor is not floating.
    """
    _check_weight_and_style(weight, style)
    _check_floating("x", x)
    if x.dim() != 3 or x.shape[2] != weight.shape[1] or x.shape[0] not in (1, style.shape[0]):
        batch = f"{style.shape[0]}|1" if style.shape[0] != 1 else "1"
        raise ValueError(f"x: got shape {list(x.shape)}, must be [{batch}, P, {weight.shape[1]}]")
    _check_device("x", x, weight)
    if bias is not None:
        _check_floating("bias", bias)
        _check_device("bias", bias, weight)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: got shape {list(bias.shape)}, must be [{weight.shape[0]}]")
    check_choice("activation", activation, ref.ACTIVATIONS)
    if activation == "sinrelu" and weight.shape[0] % 2:
        raise ValueError(f"weight: got {weight.shape[0]} outputs, activation 'sinrelu' needs an even number")
    layer = mod_fc_cpu if resolve_backend(backend, x) == "cpu" else ref.mod_fc_ref
    return layer(x, weight, style, bias, demodulate, activation)


def fourier_encode(coords: Tensor, freq: Tensor, phase: Tensor) -> Tensor:
    """Encode coordinates by learned Fourier features: sin(F c + φ)   (Anokhin et al., arXiv 2011.13775, section 3).

    Args:
        coords: floating [B, P, D] or [1, P, D], any range; the usual one is [-1, 1].
        freq: radians per unit of coordinate, floating [C, D].
        phase: radians, floating [C].

    Returns:
        Features in [-1, 1], [B, P, C].

    Raises:
        ValueError: a shape does not fit, or the tensors lie on different devices.
        TypeError: a tensor is not floating.
    """
    for name, tensor in (("coords", coords), ("freq", freq), ("phase", phase)):
        _check_floating(name, tensor)
        _check_device(name, tensor, freq)
    if freq.dim() != 2 or phase.shape != freq.shape[:1]:
        raise ValueError(f"phase: got shape {list(phase.shape)} for freq {list(freq.shape)}, must be [C] and [C, D]")
    if coords.dim() != 3 or coords.shape[2] != freq.shape[1]:
        raise ValueError(f"coords: got shape {list(coords.shape)}, must be [B, P, {freq.shape[1]}]")
    # Under autocast F c would be rounded to 8 bits before the sine, and every pixel's position with it.
    with torch.autocast(coords.device.type, enabled=False):
        return ref.fourier_encode_ref(coords, freq, phase)


def embed_coords(coords: Tensor, table: Tensor, *, align_corners: bool = True, backend: str = "auto") -> Tensor:
    """Read a learned table of features bilinearly at coordinates   (Anokhin et al., arXiv 2011.13775, section 3).

    Args:
        coords: x, y in [-1, 1], floating [B, P, 2]; beyond that range the border is read.
        table: floating [H, W, C].
        align_corners: -1 and 1 are the centres of the outermost cells, else their outer edges.
        backend: `auto`, `cpu` or `reference`.

    Returns:
        Features [B, P, C].

    Raises:
        ValueError: a shape, device or backend does not fit.
        TypeError: a tensor is not floating.
    """
    for name, tensor in (("coords", coords), ("table", table)):
        _check_floating(name, tensor)
        _check_device(name, tensor, table)
    if table.dim() != 3:
        raise ValueError(f"table: got shape {list(table.shape)}, must be [H, W, C]")
    if coords.dim() != 3 or coords.shape[2] != 2:
        raise ValueError(f"coords: got shape {list(coords.shape)}, must be [B, P, 2]")
    read = embed_coords_cpu if resolve_backend(backend, coords) == "cpu" else ref.embed_coords_ref
    return read(coords, table, align_corners)


def resolve_backend(backend: str, tensor: Tensor) -> str:
    """The backend that `backend` stands for on the tensor's device; ValueError where it cannot serve that device."""
    check_choice("backend", backend, BACKENDS)
    on_cpu = tensor.device.type == "cpu"
    if backend == "cpu" and not on_cpu:
        raise ValueError(f"backend: got 'cpu' for tensors on {tensor.device}, may be 'auto' or 'reference' there")
    if backend == "auto":
        return "cpu" if on_cpu else "reference"
    return backend


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, may be {', '.join(map(repr, choices))}")


def _check_weight_and_style(weight: Tensor, style: Tensor) -> None:
    _check_floating("weight", weight)
    _check_floating("style", style)
    _check_device("style", style, weight)
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"weight: got shape {list(weight.shape)}, must be [O, I]")
    if style.dim() != 2 or style.shape[1] != weight.shape[1]:
        raise ValueError(f"style: got shape {list(style.shape)}, must be [B, {weight.shape[1]}]")


def _check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: got dtype {tensor.dtype}, must be floating")


def _check_device(name: str, tensor: Tensor, weight: Tensor) -> None:
    if tensor.device != weight.device:
        raise ValueError(f"{name}: got device {tensor.device}, must be {weight.device} like the weights")

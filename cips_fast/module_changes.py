"""Generators whose modules were replaced, wrapped, hooked or given adapters: how this is noticed, and their synthesis.

A generator as it was built is one operator over its parameters, and the operator calls no layer. It would ignore any
change to a layer other than new values of its parameters. So a changed generator calls its modules one after another.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from .checks import ArgumentError
from .kernels.network import second_layers
from .modules import EqualLinear, FourierEncoding, ModFC, Shortcut, ToRGB

if TYPE_CHECKING:
    from .generator import CIPSGenerator

# The modules that a generator is built of: the forward method and the number of children of each kind.
_BUILT = {
    ModFC: (ModFC.forward, 1),
    ToRGB: (ToRGB.forward, 1),
    EqualLinear: (EqualLinear.forward, 0),
    FourierEncoding: (FourierEncoding.forward, 0),
    nn.Identity: (nn.Identity.forward, 0),
}


def change_of(generator: "CIPSGenerator") -> str | None:
    """The first changed module that the one operator would ignore, such as `layers.0 has hooks`; None if there is none.

    Parametrisations of weights do not count as changes, since the operator reads weights as attributes. Changes to an
    affine layer (see `plain_affines`), to the mapping or to a shortcut do not count either: these are always called as
    modules.
    """
    if (
        nn_module._global_forward_hooks
        or nn_module._global_forward_pre_hooks
        or nn_module._global_backward_hooks
        or nn_module._global_backward_pre_hooks
    ):
        return "modules have hooks that are registered for all modules"
    change = _change(generator.encoding, FourierEncoding)
    if change is not None:
        return f"encoding {change}"
    activation = generator.activation
    for index, layer in enumerate(generator.layers):
        change = _change(layer, ModFC) or _other_formula(layer, activation)
        if change is not None:
            return f"layers.{index} {change}"
    for index, tap in enumerate(generator.to_rgb):
        change = _change(tap, ToRGB)
        if change is not None:
            return f"to_rgb.{index} {change}"
    for index, shortcut in enumerate(generator.shortcuts):
        change = None if isinstance(shortcut, Shortcut) else _change(shortcut, nn.Identity)
        if change is not None:
            return f"shortcuts.{index} {change}"
    return None


def plain_affines(affines: Sequence[nn.Module]) -> bool:
    """Whether one matrix product of their weights computes the same as all affine layers."""
    return not any(_change(affine, EqualLinear) or affine.lr_multiplier != 1 for affine in affines)


def _change(module: nn.Module, kind: type[nn.Module]) -> str | None:
    forward, count = _BUILT[kind]
    children = module._modules
    if type(module) is not kind:
        if "parametrizations" not in children or type(module).__bases__ != (kind,):
            return f"is a {type(module).__name__}"
        count += 1
    if type(module).forward is not forward or "forward" in module.__dict__:
        return "has another forward method"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "has hooks"
    return "has other children" if len(children) != count else None


def _other_formula(layer: ModFC, activation: str) -> str | None:
    if layer.activation != activation:
        return f"has activation {layer.activation!r}"
    if not layer.demodulate:
        return "does not demodulate"
    return "has no bias" if layer._parameters.get("bias", layer) is None else None


def colours(generator: "CIPSGenerator", w: Tensor, points: Tensor, table_coords: Tensor | None = None) -> Tensor:
    """Colours of points by calling the generator's modules, of any kind.

    Args:
        generator: its encoding takes points. Its layers and taps take features and latents, as `ModFC` and `ToRGB` do.
        w: style latents [B, S], or one for each layer [B, L, S].
        points: [B|1, P, 2].
        table_coords: where the embedding table is read [B|1, P, 2]; the encoding's own choice unless given.

    Returns:
        [B, P, 3], of at least float32.

    Raises:
        ValueError: a layer or a tap returned another shape, or there is noise for a layer that takes none.
    """
    x = before = generator.encoding(points) if table_coords is None else generator.encoding(points, table_coords)
    taps, blocks = dict(zip(generator.tapped, generator.to_rgb, strict=True)), {}
    if generator.variant == "res":
        blocks = dict(zip(second_layers(generator.num_layers), generator.shortcuts, strict=True))
    rgb = 0
    pixels = (w.shape[0], points.shape[1])
    for index, layer in enumerate(generator.layers):
        if index + 1 in blocks:
            before = x
        latent = w if w.dim() == 2 else w[:, index]
        x = layer(x, latent, *([generator.noise_strength[index]] if generator.noise else []))
        _check_shape(f"layers.{index}", x, [*pixels, x.shape[-1]])
        if index in blocks:
            x = (x + _around(blocks[index], before)) / math.sqrt(2)
        if index in taps:
            tap = taps[index](x, latent)
            _check_shape("to_rgb", tap, [*pixels, 3])
            rgb = rgb + tap.to(torch.promote_types(tap.dtype, torch.float32))
    return rgb


def check_noise(generator: "CIPSGenerator") -> None:
    """Raise ValueError if there is noise for a layer that does not take it."""
    for index, layer in enumerate(generator.layers if generator.noise else ()):
        if not isinstance(layer, ModFC):
            raise ArgumentError(
                "noise",
                f"got True for a generator whose layers.{index} is a {type(layer).__name__}, must be False: "
                "only a ModFC adds noise (generator.noise = False)",
            )


def _around(shortcut: nn.Module, before: Tensor) -> Tensor:
    return shortcut(before) if isinstance(shortcut, nn.Identity) else F.linear(before, shortcut().to(before.dtype))


def _check_shape(name: str, got: Tensor, wanted: list[int]) -> None:
    if list(got.shape) != wanted:
        raise ArgumentError(name, f"it returned shape {list(got.shape)}, must be {wanted}")

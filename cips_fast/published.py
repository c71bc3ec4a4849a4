"""Checkpoints of the published code (classes CIPSskip and CIPSres): reading them, and writing a generator as one."""

import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .backends.choice import BACKENDS
from .checkpoint import SETTINGS, check_names_and_shapes, fill, not_finite, read_tensors, unfilled
from .checks import ArgumentError, check_choice, shown
from .files.atomic import write_whole
from .files.torch_files import read_torch_file
from .files.untrusted import SAFETENSORS, CheckpointError, first_line, kind_of
from .generator import CIPSGenerator

MEAN_LATENT_SAMPLES = 4096
NAMES_SHOWN = 4  # in the message about a state dict that is not a published one
MAX_NESTED_DICTS = 8  # around a state dict


def load_published(
    source: str | Path | Mapping[str, Tensor],
    *,
    variant: str | None = None,
    size: int | None = None,
    activation: str | None = None,
    integer_coords: bool = False,
    mean_latent: Tensor | None = None,
    backend: str = "auto",
) -> CIPSGenerator:
    """A generator whose output equals the published code's (classes CIPSskip and CIPSres), in eval mode.

    The names and shapes tell the variant, size, widths and depths. In train mode, at the native size, the embedding is
    used as it is; otherwise it is sampled with align_corners=False. The published code does the same.

    Args:
        source: a checkpoint file, read with weights_only=True; a state dict; or a dict that holds one as `g_ema`, `g`,
            `generator`, `G` or `state_dict`. Prefixes that DataParallel, torch.compile and Lightning add to the names
            (`module.`, `_orig_mod.`, `generator.`) are removed.
        variant: `skip` or `res`; None accepts both.
        size: native resolution; None accepts all.
        activation: `lrelu`, `sin` or `sinrelu`. The last two must be given, since no shape tells them apart.
        integer_coords: whether the native grid is counted in pixels.
        mean_latent: centre of truncation [S]; the default is the mean of w over 4096 fixed latents.
        backend: see `cips_fast.backends.choice`.

    Raises:
        FileNotFoundError: no file is there.
        OSError: the file cannot be read.
        ValueError: the file is damaged or not a published checkpoint; names or shapes do not fit, and the message lists
            them; or a value is not finite.
    """
    check_choice("backend", backend, BACKENDS)
    state = published_state(source, ("g_ema", "g", "generator", "G"))
    config = _published_config(state, variant, size, activation)
    config |= {"integer_coords": integer_coords, "align_corners": False, "backend": backend}
    layout = unfilled(config)
    names = list(_published_names(layout))
    check_names_and_shapes(state, {published: shape for published, _, shape in names})
    if reason := not_finite(state):
        raise ArgumentError("state_dict", reason)
    if mean_latent is not None and mean_latent.numel() != layout.style_features:
        raise ArgumentError("mean_latent", f"got shape {list(mean_latent.shape)}, must be [{layout.style_features}]")

    shapes = {name: tensor.shape for name, tensor in layout.state_dict().items()}
    tensors = {own: state[published].reshape(shapes[own]) for published, own, _ in names if own}
    tensors["encoding.embedding"] = state["emb.input"][0].permute(1, 2, 0).contiguous()  # [H, W, C]
    strengths = [state[published].reshape(1) for published, own, _ in names if own is None]
    tensors["noise_strength"] = torch.cat(strengths)
    config["noise"] = bool(tensors["noise_strength"].any())
    tensors["mean_latent"] = torch.zeros(layout.style_features)
    generator = unfilled(config)
    fill(generator, tensors)
    generator.mean_latent.copy_(_sampled_mean_latent(generator) if mean_latent is None else mean_latent.reshape(-1))
    return generator


def to_published(generator: CIPSGenerator) -> dict[str, Tensor]:
    """A generator as a state dict of the published code: its names and shapes; float32 copies on the CPU.

    `load_published` of the state dict gives the same output bit for bit, except with `truncation`: a published state
    dict has no centre of truncation, so that is sampled again. It does not say either whether the grid counts in pixels
    and which of the sines is the activation; tell `load_published` so. The published classes have the widths `width`
    "published" and one embedding cell a pixel. Other widths and embeddings are written as they are, and only classes
    that are changed accordingly can read them.

    Raises:
        ValueError: no state dict of the published code computes what the generator computes.
    """
    _check_can_be_published(generator)
    own = generator.state_dict()
    own["encoding.embedding"] = own["encoding.embedding"].permute(2, 0, 1)  # [C, H, W]
    strengths = iter(own["noise_strength"] if generator.noise else torch.zeros(generator.num_layers))
    return {
        published: (next(strengths) if name is None else own[name])
        .detach()
        .reshape(shape)
        .to("cpu", copy=True, memory_format=torch.contiguous_format)
        for published, name, shape in _published_names(generator)
    }


def save_published(generator: CIPSGenerator, path: str | Path) -> None:
    """Write `to_published` to a file, whole or not at all, as the entry `g_ema`, which the published code samples from.

    Raises:
        ValueError: as in `to_published`.
        OSError: the file cannot be written.
    """
    content = io.BytesIO()  # PyTorch's file writer may end the whole process if the disk is full
    torch.save({"g_ema": to_published(generator)}, content)
    write_whole(path, content.getbuffer())


def _check_can_be_published(generator: CIPSGenerator) -> None:
    """Raise ValueError, which names the setting, unless the published formulas give this generator's output."""
    encoding = generator.encoding
    settings = {
        "geometry": (generator.config["geometry"], "plane"),
        "align_corners": (encoding.align_corners, False),
        "dtype": (encoding.freq.dtype, torch.float32),
    }
    for name, (value, wanted) in settings.items():
        if value != wanted:
            reason = f"got {value!r}, must be {wanted!r} in a published checkpoint"
            if name == "align_corners":
                reason += "; it is True in the generators that this library trains"
            raise ArgumentError(name, reason)


def published_state(source: str | Path | Mapping[str, Tensor], entries: tuple[str, ...]) -> dict[str, Tensor]:
    """The state dict in a published checkpoint: float32 copies on the CPU, without the names' prefixes.

    Args:
        source: a file, a state dict, or nested dicts that hold one.
        entries: names that it may have there, the preferred one first: keys of a dict, or prefixes of names.

    Raises:
        FileNotFoundError: no file is there.
        OSError: the file cannot be read.
        ValueError: there is no dict of floating-point tensors.
    """
    in_file = isinstance(source, str | os.PathLike)
    state = _below(_plain(_inner(_read(source) if in_file else source, entries)), entries)
    for name, tensor in state.items():
        _check_copyable(name, tensor, in_file)
    # Copies, so that changes of the loaded network do not change the caller's dict.
    return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in state.items()}


def _read(path: str | Path) -> Mapping[str, object]:
    """The dict in a file."""
    if kind_of(path) == SAFETENSORS:
        tensors, metadata = read_tensors(path)
        if SETTINGS in metadata:
            raise CheckpointError(path, "is one of cips_fast's own, which cips_fast.load reads")
        return tensors
    content = read_torch_file(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(path, f"holds a {type(content).__name__}, must hold a dict of tensors")
    return content


def _inner(source: object, entries: tuple[str, ...]) -> Mapping[str, object]:
    """The state dict inside nested dicts."""
    for _ in range(MAX_NESTED_DICTS):
        if not isinstance(source, Mapping):
            break
        found = [entry for entry in (*entries, "state_dict") if entry in source]
        if not found:
            return source
        source = source[found[0]]
    raise ArgumentError("state_dict", f"got {type(source).__name__}, must be a dict of tensors")


def _plain(state: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors, with names from which the prefixes of DataParallel and torch.compile are removed."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            continue
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        while parts[:1] == ["module"]:
            parts = parts[1:]
        short = ".".join(parts)
        if short in plain:
            raise ArgumentError("state_dict", f"{shown(name)} and another name are both {shown(short)}")
        plain[short] = tensor
    return plain


def _below(state: dict[str, Tensor], entries: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors whose names have the first of the entries that is a prefix, without it; all if none is a prefix."""
    for entry in entries:
        prefix = f"{entry}."
        if below := {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}:
            return _plain(below)
    return state


def _check_copyable(name: str, tensor: Tensor, in_file: bool) -> None:
    """Raise ValueError unless it is a plain floating-point tensor and a file holds all of its bytes."""
    plain = tensor.layout is torch.strided and not tensor.is_nested and tensor.device.type != "meta"
    if not plain or not tensor.is_floating_point():
        kind = tensor.dtype if plain else f"a tensor of layout {tensor.layout} on {tensor.device}"
        raise ArgumentError(
            "state_dict", f"{first_line(name, 60)}: got {kind}, must be a floating tensor with its values"
        )
    if in_file and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ArgumentError("state_dict", f"{first_line(name, 60)}: got fewer values than its shape has")


def _sampled_mean_latent(generator: CIPSGenerator) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return generator.mapping(torch.randn(MEAN_LATENT_SAMPLES, generator.style_features, generator=rng)).mean(0)


def _published_config(
    state: Mapping[str, Tensor], variant: str | None, size: int | None, activation: str | None
) -> dict:
    """Constructor arguments that a published state dict implies; ValueError if the caller's differ."""
    found = {"variant": "res" if any(name.startswith("to_rgb_last.") for name in state) else "skip"}
    last = {"skip": "linears.{}.conv.weight", "res": "linears.{}.conv2.conv.weight"}[found["variant"]]
    widths = []
    while (name := last.format(2 * len(widths) + 1 if found["variant"] == "skip" else len(widths) + 1)) in state:
        widths.append(_shape(state, name, 5)[1])
    required = ("emb.input", "style.1.weight", "lff.ffm.conv.weight")
    if missing := [name for name in required if name not in state] or ([last.format(1)] if not widths else []):
        names = ", ".join(first_line(name, 60) for name in list(state)[:NAMES_SHOWN]) or "no tensors"
        raise ArgumentError(
            "state_dict",
            f"not a published CIPS generator, it lacks {', '.join(missing)}; "
            f"it has {names}{', …' if len(state) > NAMES_SHOWN else ''}",
        )
    found["size"] = 2 ** (len(widths) + 1)
    for name, value in (("variant", variant), ("size", size)):
        if value is not None and value != found[name]:
            raise ArgumentError(name, f"got {value!r}, but the state_dict's names and shapes are of {found[name]!r}")
    choices = ("lrelu",) if any(name.endswith("activate.bias") for name in state) else ("sin", "sinrelu")
    activation = activation or (choices[0] if len(choices) == 1 else None)
    if activation not in choices:
        raise ArgumentError(
            "activation", f"got {activation!r}, by the biases' names it is {' or '.join(map(repr, choices))}"
        )
    found |= {
        "width": widths,
        "activation": activation,
        "style_features": _shape(state, "style.1.weight", 2)[0],
        "embedding_size": _shape(state, "emb.input", 4)[-1],
        "encoding_features": _shape(state, "emb.input", 4)[1],
        "mapping_layers": sum(name.startswith("style.") and name.endswith(".weight") for name in state),
    }
    return found


def _shape(state: Mapping[str, Tensor], name: str, dims: int) -> tuple[int, ...]:
    """A tensor's shape; ValueError unless it has `dims` dimensions."""
    if state[name].dim() != dims:
        raise ArgumentError("state_dict", f"{name}: got {shown(list(state[name].shape))}, must have {dims} dimensions")
    return tuple(state[name].shape)


def _published_names(layout: CIPSGenerator) -> Iterator[tuple[str, str | None, tuple[int, ...]]]:
    """(published name, our name, published shape) of every parameter; our name is None for a noise strength."""
    own = {name: tuple(tensor.shape) for name, tensor in layout.state_dict().items()}

    def affine(theirs: str, ours: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        for kind in ("weight", "bias"):
            yield f"{theirs}.{kind}", f"{ours}.{kind}", own[f"{ours}.{kind}"]

    def modulated(theirs: str, ours: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield f"{theirs}.weight", f"{ours}.weight", (1, *own[f"{ours}.weight"], 1, 1)
        yield from affine(f"{theirs}.modulation", f"{ours}.affine")

    height, width, features = own["encoding.embedding"]
    yield "lff.ffm.conv.weight", "encoding.freq", (*own["encoding.freq"], 1, 1)
    yield "lff.ffm.conv.bias", "encoding.phase", own["encoding.phase"]
    yield "emb.input", "encoding.embedding", (1, features, height, width)
    for index in range(len(layout.mapping.layers)):
        yield from affine(f"style.{index + 1}", f"mapping.layers.{index}")
    for index, layer in enumerate(layout.layers):
        theirs, ours = _published_layer(layout.variant, index), f"layers.{index}"
        out = own[f"{ours}.bias"]
        yield from modulated(f"{theirs}.conv", ours)
        yield f"{theirs}.noise.weight", None, (1,)
        if layer.activation == "lrelu":
            yield f"{theirs}.activate.bias", f"{ours}.bias", out
        else:
            yield f"{theirs}.bias", f"{ours}.bias", (1, *out, 1, 1)
    for index in range(len(layout.to_rgb)):
        theirs = f"to_rgbs.{index}" if layout.variant == "skip" else "to_rgb_last"
        yield from modulated(f"{theirs}.conv", f"to_rgb.{index}")
        yield f"{theirs}.bias", f"to_rgb.{index}.bias", (1, 3, 1, 1)
    for index in range(len(layout.shortcuts)):
        if f"shortcuts.{index}.weight" in own:
            shape = own[f"shortcuts.{index}.weight"]
            yield f"linears.{index + 1}.skip.0.weight", f"shortcuts.{index}.weight", (*shape, 1, 1)


def _published_layer(variant: str, index: int) -> str:
    """The published name of layer `index`."""
    if variant == "skip":
        return "conv1" if index == 0 else f"linears.{index - 1}"
    return "linears.0" if index == 0 else f"linears.{(index + 1) // 2}.conv{2 - index % 2}"

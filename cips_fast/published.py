"""Checkpoints of the published code (classes CIPSskip and CIPSres): theirs to ours and back."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import assemble, check_names_and_shapes
from .generator import CIPSGenerator

MEAN_LATENT_SAMPLES = 4096


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

    Variant, size, widths and depths are read off the names and shapes. In train mode, at the native size, the embedding
    is used as it stands; elsewhere it is sampled with align_corners=False: so does the published code.

    Args:
        source: a checkpoint file, read with weights_only=True, or a state dict, or a dict that holds one as `g_ema` or
            `g`.
        variant: `skip` or `res`; checked where given.
        size: native resolution; checked where given.
        activation: needed for `sin` and `sinrelu`, which no shape tells apart; checked where given.
        integer_coords: the native grid is counted in pixels.
        mean_latent: centre of truncation [S]; the mean of w over 4096 fixed latents unless given.
        backend: see `cips_fast.functional`.

    Raises:
        FileNotFoundError: no file is there.
        ValueError: the names or shapes do not fit; the message lists those that do not.
    """
    state = published_state(source, ("g_ema", "g"))
    config = _published_config(state, variant, size, activation)
    config |= {"integer_coords": integer_coords, "align_corners": False, "backend": backend}
    with torch.device("meta"):
        layout = CIPSGenerator(**config)
    table = list(_published_names(layout))
    check_names_and_shapes(state, {published: shape for published, _, shape in table})

    shapes = {name: tensor.shape for name, tensor in layout.state_dict().items()}
    tensors = {own: state[published].reshape(shapes[own]) for published, own, _ in table if own}
    tensors["encoding.embedding"] = state["emb.input"][0].permute(1, 2, 0).contiguous()  # [H, W, C]
    strengths = [state[published].reshape(1) for published, own, _ in table if own is None]
    tensors["noise_strength"] = torch.cat(strengths)
    config["noise"] = bool(tensors["noise_strength"].any())
    tensors["mean_latent"] = torch.zeros(layout.style_features)
    generator = assemble(config, tensors)
    generator.mean_latent.copy_(_sampled_mean_latent(generator) if mean_latent is None else mean_latent.reshape(-1))
    return generator


def to_published(generator: CIPSGenerator) -> dict[str, Tensor]:
    """The state dict that the published code holds for a generator: its names and shapes, float32, copies on the CPU.

    `load_published` of it gives the same output bit for bit, but for `truncation`, whose centre it samples anew: a
    published state dict has none. Nor does it say whether the grid counts in pixels or which sines are the activation:
    `load_published` wants to be told. Widths and an embedding that are not the published classes' own (`width`
    "published", one cell a pixel) are written as they are, and those classes need the same to read them.

    Raises:
        ValueError: the generator computes what no state dict of the published code does.
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
    """Write `to_published` to a file, as the entry `g_ema` that the published code samples from.

    Raises:
        ValueError: as `to_published`.
    """
    torch.save({"g_ema": to_published(generator)}, path)


def _check_can_be_published(generator: CIPSGenerator) -> None:
    """Raise ValueError, naming the setting, unless the published formulas give this generator's output."""
    encoding = generator.encoding
    settings = {
        "geometry": (generator.config["geometry"], "plane"),
        "align_corners": (encoding.align_corners, False),
        "dtype": (encoding.freq.dtype, torch.float32),
    }
    for name, (value, wanted) in settings.items():
        if value != wanted:
            raise ValueError(f"{name}: got {value!r}, a published checkpoint can only be of {wanted!r}")


def published_state(source: str | Path | Mapping[str, Tensor], entries: tuple[str, ...]) -> Mapping[str, Tensor]:
    """The float32 state dict in a published checkpoint: a file or a dict, whole or the first of `entries`."""
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise FileNotFoundError(f"checkpoint: got {str(source)!r}, which is not a file")
        try:
            source = torch.load(source, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"checkpoint: {str(source)!r} cannot be read as tensors alone ({error})") from error
    state = next((source[entry] for entry in entries if entry in source), source)
    if not isinstance(state, Mapping):
        raise ValueError(f"state_dict: got {type(state).__name__}, must be a dict of tensors")
    # Copies: what is done to the loaded network must not reach the caller's dict.
    return {
        name.removeprefix("module."): tensor.detach().to("cpu", torch.float32, copy=True)
        for name, tensor in state.items()
        if isinstance(tensor, Tensor)
    }


def _sampled_mean_latent(generator: CIPSGenerator) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return generator.mapping(torch.randn(MEAN_LATENT_SAMPLES, generator.style_features, generator=rng)).mean(0)


def _published_config(
    state: Mapping[str, Tensor], variant: str | None, size: int | None, activation: str | None
) -> dict:
    """Constructor arguments read off a published state dict, checked against what the caller said."""
    found = {"variant": "res" if any(name.startswith("to_rgb_last.") for name in state) else "skip"}
    last = {"skip": "linears.{}.conv.weight", "res": "linears.{}.conv2.conv.weight"}[found["variant"]]
    step = {"skip": 2, "res": 1}[found["variant"]]
    widths = []
    while (name := last.format(step * (len(widths) + 1) - (found["variant"] == "skip"))) in state:
        widths.append(state[name].shape[1])
    required = ("emb.input", "style.1.weight", "lff.ffm.conv.weight")
    if missing := [name for name in required if name not in state] or ([last.format(1)] if not widths else []):
        raise ValueError(f"state_dict: not a published CIPS generator, it lacks {', '.join(missing)}")
    found["size"] = 2 ** (len(widths) + 1)
    for name, value in (("variant", variant), ("size", size)):
        if value is not None and value != found[name]:
            raise ValueError(f"{name}: got {value!r}, but the state_dict's names and shapes are of {found[name]!r}")
    choices = ("lrelu",) if any(name.endswith("activate.bias") for name in state) else ("sin", "sinrelu")
    activation = activation or (choices[0] if len(choices) == 1 else None)
    if activation not in choices:
        raise ValueError(
            f"activation: got {activation!r}, by the biases' names it is {' or '.join(map(repr, choices))}"
        )
    return found | {
        "width": widths,
        "activation": activation,
        "style_features": state["style.1.weight"].shape[0],
        "embedding_size": state["emb.input"].shape[-1],
        "encoding_features": state["emb.input"].shape[1],
        "mapping_layers": sum(name.startswith("style.") and name.endswith(".weight") for name in state),
    }


def _published_names(layout: CIPSGenerator) -> Iterator[tuple[str, str | None, tuple[int, ...]]]:
    """(published name, our name or None for a noise strength, published shape) of every parameter."""
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
    """The published name of our layer."""
    if variant == "skip":
        return "conv1" if index == 0 else f"linears.{index - 1}"
    return "linears.0" if index == 0 else f"linears.{(index + 1) // 2}.conv{2 - index % 2}"

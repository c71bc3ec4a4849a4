"""What a run needs, without running it: sizes, memory and disk space."""

import json
from dataclasses import dataclass

import torch
from torch import nn

from cips_fast.command_line import OptionError

from .data.sources import check_source
from .memory import memory_bytes
from .options import Options, to_dict
from .run_folder import KEPT_CHECKPOINTS
from .trainer import make_discriminator, make_generator

# Copies of a weight: the weight, its gradient, Adam's two moments, and for the generator the moving average.
G_COPIES, D_COPIES = 5, 4
LESS = "smaller with a smaller --pixel-chunk, --batch or --crop"


@dataclass(frozen=True)
class Needs:
    """What a run needs, in bytes.

    Attributes:
        generator, discriminator: the networks, without weights.
        state: parameters, gradients, moments and average.
        batch: the images of a step and their coordinates.
        activations: the generator's activations in a step, estimated; the fused kernels keep half of them.
        checkpoint: one checkpoint on disk.
    """

    generator: nn.Module
    discriminator: nn.Module
    state: int
    batch: int
    activations: int
    checkpoint: int


def needs_of(options: Options) -> Needs:
    """What a run with these options needs."""
    with torch.device("meta"):
        generator, discriminator = make_generator(options), make_discriminator(options)
    g, d = _count(generator), _count(discriminator)
    return Needs(
        generator,
        discriminator,
        state=(g * G_COPIES + d * D_COPIES) * 4,
        batch=options.batch * options.crop**2 * (3 + 2) * 4,
        activations=activation_bytes(options, generator),
        checkpoint=(g * (G_COPIES - 1) + d * (D_COPIES - 1)) * 4,
    )


def describe(options: Options) -> str:
    """The resolved options, parameter counts, and estimated memory and disk space, as text.

    Raises:
        DataError: the data do not exist or do not fit the options. The images themselves are not read.
    """
    check_source(options.data, options.res, geometry=options.geometry)
    needs = needs_of(options)
    lines = [
        json.dumps(to_dict(options), indent=2),
        f"generator      {_count(needs.generator):>12,} parameters, {needs.generator.num_layers} ModFC layers",
        f"discriminator  {_count(needs.discriminator):>12,} parameters",
        f"memory         {needs.state / 2**20:>12,.0f} MiB of parameters, gradients, moments and average",
        f"               {needs.activations / 2**20:>12,.0f} MiB of the generator's activations in a step (estimated)",
        f"disk           {needs.checkpoint / 2**20:>12,.0f} MiB per checkpoint; the newest {KEPT_CHECKPOINTS} are kept",
    ]
    there, needed = memory_bytes(options.device), needs.state + needs.batch + needs.activations
    if there is not None and needed > there:
        lines.append(
            f"warning: the run needs about {needed / 2**20:,.0f} MiB of memory, but {options.device} has "
            f"{there / 2**20:,.0f} MiB; the activations are {LESS}"
        )
    return "\n".join(lines)


def check_memory(options: Options) -> None:
    """Raise OptionError if the run cannot fit into memory, even if the fused kernels halve the activations."""
    needs, there = needs_of(options), memory_bytes(options.device)
    if there is None:
        return
    has = f"{options.device} has {there / 2**20:,.0f} MiB of memory"
    if needs.state > there:
        raise OptionError(
            f"--width {options.width}, --embedding-size {options.embedding_size}, --style-features "
            f"{options.style_features}, --mapping-layers {options.mapping_layers}, --d-channels {options.d_channels}: "
            f"the networks and their averages need {needs.state / 2**20:,.0f} MiB, but {has}"
        )
    least = needs.state + needs.batch + needs.activations // 2
    if least > there:
        chunk = "" if options.pixel_chunk is None else f", --pixel-chunk {options.pixel_chunk}"
        raise OptionError(
            f"--batch {options.batch}, --crop {options.crop}{chunk}: a step needs {least / 2**20:,.0f} MiB or more, "
            f"but {has}; this is {LESS}, and --dry-run lists the parts"
        )


def activation_bytes(options: Options, generator: nn.Module) -> int:
    """Bytes that autograd keeps for the generator's pixels: two tensors for the encoding and two for each layer.

    They are kept for all pixels, or for one chunk of each image. The fused kernels keep half of these bytes.
    """
    size = 4 if options.precision == "fp32" else 2
    pixels = min(options.crop**2, options.pixel_chunk or options.crop**2)
    channels = sum(layer.weight.shape[0] for layer in generator.layers)
    encoding = generator.layers[0].weight.shape[1]
    return options.batch * pixels * (2 * channels * size + encoding * (4 + size))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())

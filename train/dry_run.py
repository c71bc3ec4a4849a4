"""What a run would be, without running it."""

import json

import torch
from torch import nn

from .config import Options, to_dict
from .trainer import make_discriminator, make_generator

# Of a weight: itself, its gradient, Adam's two moments; and the average for the generator.
G_COPIES, D_COPIES = 5, 4


def describe(options: Options) -> str:
    """Resolved options, parameter counts and estimated memory, as text."""
    with torch.device("meta"):
        generator, discriminator = make_generator(options), make_discriminator(options)
    g, d = _count(generator), _count(discriminator)
    state = (g * G_COPIES + d * D_COPIES) * 4
    activations = activation_bytes(options, generator)
    return "\n".join(
        [
            json.dumps(to_dict(options), indent=2),
            f"generator      {g:>12,} parameters, {generator.num_layers} ModFC layers",
            f"discriminator  {d:>12,} parameters",
            f"memory         {state / 2**20:>12,.0f} MiB of parameters, gradients, moments and average",
            f"               {activations / 2**20:>12,.0f} MiB of the generator's activations a step (estimated)",
        ]
    )


def activation_bytes(options: Options, generator: nn.Module) -> int:
    """What autograd keeps of the generator's pixels: the encoding twice, and two tensors a layer.

    Of all pixels, or of one chunk of every image. The fused kernels keep half of it.
    """
    size = 4 if options.precision == "fp32" else 2
    pixels = min(options.crop**2, options.pixel_chunk or options.crop**2)
    channels = sum(layer.weight.shape[0] for layer in generator.layers)
    encoding = generator.layers[0].weight.shape[1]
    return options.batch * pixels * (2 * channels * size + encoding * (4 + size))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())

"""Latents of seeds, and colours as picture files: what the commands do, for use in programs."""

import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import not_finite
from .checks import ArgumentError
from .files import pictures
from .generator import CIPSGenerator

LARGEST_SEED = 2**64 - 1


def latents(seeds: int | Sequence[int], generator: CIPSGenerator | int) -> Tensor:
    """Latents z ~ N(0, 1) of seeds. A seed gives the same latent alone, among others, and on every device.

    The option `--seeds` of the commands gives the same latents.

    Args:
        seeds: one or more whole numbers, each 0 to 2**64 - 1.
        generator: the generator that the latents are for, or its number `style_features` S.

    Returns:
        [N, S], of PyTorch's default dtype, on the generator's device: an argument for the generator and its `mapping`.

    Raises:
        ValueError: a seed or the number of features is out of range or not a whole number.
    """
    of_generator = isinstance(generator, CIPSGenerator)
    features = generator.style_features if of_generator else generator
    if not isinstance(features, int) or features < 1:
        raise ArgumentError("generator", f"got {features!r}, must be a CIPSGenerator or a positive number of features")
    z = [torch.randn(features, generator=torch.Generator().manual_seed(seed)) for seed in _whole(seeds)]
    z = torch.stack(z) if z else torch.empty(0, features)
    return z.to(generator.mean_latent.device) if of_generator else z


def save_image(path: str | Path, rgb: Tensor) -> None:
    """Write colours as a picture of 8 bits a channel: PNG, JPEG, WebP or TIFF by the path's ending.

    Args:
        path: the file; it is written whole or not at all.
        rgb: floating-point, nominally in [-1, 1], and clipped beyond that range. [3, H, W], or [B, 3, H, W] for B
            images in a grid that is nearly square, row by row.

    Raises:
        ValueError: the ending or the shape is another one, colours are not finite, or the format cannot hold the
            picture.
        OSError: the file cannot be written.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentError("path", f"got {type(path).__name__}, must be a path")
    if not isinstance(rgb, Tensor) or not rgb.is_floating_point():
        raise ArgumentError("rgb", f"got {getattr(rgb, 'dtype', type(rgb).__name__)}, must be a floating tensor")
    if rgb.dim() not in (3, 4) or rgb.shape[-3] != 3 or not rgb.numel():
        raise ArgumentError("rgb", f"got shape {list(rgb.shape)}, must be [3, H, W] or [B, 3, H, W]")
    if reason := not_finite({"rgb": rgb}):
        raise ValueError(reason)
    images = [pictures.to_pixels(image) for image in (rgb if rgb.dim() == 4 else rgb[None])]
    pictures.save(path, pictures.sheet(images, math.ceil(math.sqrt(len(images)))))


def _whole(seeds: int | Sequence[int]) -> list[int]:
    """The seeds as a list of int; ValueError unless they are whole numbers in range."""
    try:
        numbers = list(map(operator.index, seeds)) if hasattr(seeds, "__iter__") else [operator.index(seeds)]
    except TypeError:
        raise ArgumentError("seeds", f"got {seeds!r:.60}, must be whole numbers") from None
    for number in numbers:
        if not 0 <= number <= LARGEST_SEED:
            raise ArgumentError("seeds", f"got {number}, must be 0 to {LARGEST_SEED}")
    return numbers

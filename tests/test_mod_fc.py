"""The layer's kernels against the float64 formulas: values, all gradients, the fused epilogues, equal bits."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from cips_fast import functional
from cips_fast import reference as ref
from cips_fast.backends import triton_ops
from cips_fast.kernels import mod_fc, mod_fc_bwd
from cips_fast.kernels.device import standing_in
from cips_fast.kernels.report.workload import Recorder, meta

from .accuracy import assert_as_accurate, draw, value_and_gradients
from .devices import DEVICES
from .layers import check_layer, check_second_derivatives, layer_inputs

# One tile of the interpreter is 64 pixels by 64 channels, 32 deep.
SHAPES = [(1, 1, 1, 1), (1, 64, 32, 64), (2, 65, 33, 3), (3, 7, 100, 64), (2, 65, 33, 65)]
IDS = [f"B{b}-P{p}-I{i}-O{o}" for b, p, i, o in SHAPES]


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("activation", ["lrelu", "linear"])
def test_layer_and_its_gradients(device, shape, shared, activation):
    check_layer(shape, device, backend="triton", shared=shared, activation=activation, demodulate=activation == "lrelu")


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_gradients_whose_pixels_are_split(device, monkeypatch):
    splits = []
    original = mod_fc_bwd.pixel_splits
    monkeypatch.setattr(mod_fc_bwd, "pixel_splits", lambda *a: splits.append(original(*a)) or splits[-1])
    check_layer((2, 8 * 64 * 3 + 7, 20, 12), device, backend="triton")
    assert splits[0] > 1


def test_any_number_of_samples_fits_the_grid():
    """A launch's second and third axes end at 65,535."""
    from cips_fast.kernels import modulate

    B, half = 100_000, torch.float16
    x, w, weight = meta(B, 2, 4, dtype=half), meta(B, 4, 4, dtype=half), meta(4, 4)
    with standing_in(Recorder("sm_80")) as recorder:
        mod_fc.mod_fc_fwd(x, w, None, lrelu=True, rgb_w=meta(B, 3, 4))
        mod_fc_bwd.mod_fc_act_bwd(x, x)
        mod_fc_bwd.mod_fc_dgrad(x, w)
        modulate.modulate_fwd(weight, meta(B, 4), demodulate=True, gain=1.0, dtype=half)
        modulate.modulate_bwd(mod_fc_bwd.mod_fc_wgrad(x, x), weight, meta(B, 4), meta(B, 4), demodulate=True, gain=1.0)
    assert len(recorder.calls) == 6
    for call in recorder.calls:
        assert all(size <= 65535 for size in call.grid[1:]), call.kernel.fn.__name__


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
@pytest.mark.parametrize("activation", ["sin", "sinrelu"])
def test_sines_follow_the_product(device, activation):
    check_layer((2, 20, 17, 6), device, backend="triton", activation=activation)


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 140), st.integers(1, 70), st.integers(1, 140)),
    st.booleans(),
    st.booleans(),
)
def test_layers_of_drawn_shapes(device, shape, shared, demodulate):
    check_layer(shape, device, backend="triton", shared=shared, demodulate=demodulate)


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_no_pixels_give_no_features_and_no_gradient(device):
    *inputs, upstream = layer_inputs((2, 0, 5, 4), device)
    y, dx, *gradients = value_and_gradients(lambda *t: functional.mod_fc(*t, backend="triton"), inputs, upstream)
    assert y.shape == (2, 0, 4)
    assert dx.shape == (2, 0, 5)
    for gradient in gradients:
        assert (gradient == 0).all()


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_no_samples_give_no_features_and_no_gradient(device, shared):
    *inputs, upstream = layer_inputs((0, 7, 5, 4), device, shared=shared)
    y, *gradients = value_and_gradients(lambda *t: functional.mod_fc(*t, backend="triton"), inputs, upstream)
    assert y.shape == (0, 7, 4)
    for gradient, tensor in zip(gradients, inputs, strict=True):
        assert gradient.shape == tensor.shape
        assert (gradient == 0).all()


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_upstream_gradients_without_memory_of_their_own(device):
    *inputs, _ = layer_inputs((2, 9, 6, 4), device)
    for activation in ("lrelu", "linear"):
        layer = lambda *t: functional.mod_fc(*t, activation=activation, backend="triton")  # noqa: B023
        wanted = value_and_gradients(layer, inputs, torch.ones(2, 9, 4))
        got = value_and_gradients(layer, inputs, torch.ones(()).expand(2, 9, 4))
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_function_transforms_are_refused_not_wrong(device):
    x, weight, style, bias, _ = layer_inputs((2, 9, 6, 4), device)
    layer = lambda x: functional.mod_fc(x, weight, style, bias, backend="triton").sum()
    with pytest.raises(NotImplementedError, match=r"backend: got 'triton' inside torch\.func's transforms"):
        torch.func.grad(layer)(x)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(layer, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="forward-mode"):
            layer(dual)


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_strided_inputs_give_the_same_bits(device):
    *inputs, upstream = layer_inputs((2, 37, 20, 12), device)
    strided = [t.mT.contiguous().mT if t.dim() > 1 else t.repeat_interleave(2)[::2] for t in inputs]
    pixels_first = inputs[0].transpose(0, 1).contiguous().transpose(0, 1)  # dense rows, other strides
    assert not strided[0].is_contiguous()
    assert not pixels_first.is_contiguous()
    layer = lambda *t: functional.mod_fc(*t, backend="triton")
    wanted = value_and_gradients(layer, inputs, upstream)
    others = [
        value_and_gradients(layer, strided, upstream.mT.contiguous().mT),
        value_and_gradients(layer, [pixels_first, *inputs[1:]], upstream),
    ]
    for got in others:
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES[2:], indirect=True)
def test_two_runs_give_equal_bits(device):
    """This needs a GPU, where the order of blocks is arbitrary; test_executed.py shuffles warps and blocks instead."""
    *inputs, upstream = layer_inputs((2, 150, 40, 70), device)
    layer = lambda *t: functional.mod_fc(*t, backend="triton")
    first, second = (value_and_gradients(layer, inputs, upstream) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "res"])
def test_rgb_tap_in_the_epilogue(device, residual):
    x, _, _, bias, _ = layer_inputs((2, 45, 24, 70), device)
    rng = torch.Generator().manual_seed(1)
    w, tap, around = (
        draw(rng, *shape).to(device.kind, device.dtype) for shape in ((2, 70, 24), (2, 3, 70), (2, 45, 70))
    )

    def formula(x, w, bias, tap, around):
        own = torch.nn.functional.leaky_relu(x @ w.mT + 1.5 * bias, 0.2)
        y = (own + around) / 2**0.5 if residual else own
        return [y, y @ tap.mT, own]

    signs = torch.empty(2, 45, 70, dtype=torch.uint8, device=device.kind)
    extra = {"around": around, "signs": signs} if residual else {}
    y, parts = mod_fc.mod_fc_fwd(x, w, bias, lrelu=True, gain=1.5, rgb_w=tap, **extra)
    assert parts.shape[1:] == (2, 45, 3)
    *wanted, own = formula(*(t.double() for t in (x, w, bias, tap, around)))
    assert_as_accurate([y, parts.sum(0)], formula(x, w, bias, tap, around)[:2], wanted, device.dtype)
    certain = own.abs() > 0.02  # elsewhere rounding may change the sign
    assert not residual or torch.equal(signs[certain], (own > 0).byte()[certain])


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("kind", ["plain", "tapped", "res"])
def test_dgrad_does_the_work_of_the_layer_below(device, kind):
    B, P, I, O = 2, 45, 70, 24
    rng = torch.Generator().manual_seed(2)
    dz, w, below, tap, around = (
        draw(rng, *shape).to(device.kind, device.dtype)
        for shape in ((B, P, O), (B, O, I), (B, P, I), (B, 3, I), (B, P, I))
    )
    drgb = draw(rng, B, P, 3).to(device.kind, torch.float32)

    def formula(dz, w, below, tap, drgb, around):
        more = {"plain": 0, "tapped": drgb.to(dz.dtype) @ tap, "res": around}[kind]
        passed = (dz @ w + more) / (2**0.5 if kind == "res" else 1)
        dx = torch.where(below > 0, passed, 0.2 * passed)
        return [dx, dx.sum((0, 1)), passed]

    passed = torch.empty_like(around)
    extra = {
        "plain": {"below": below},
        "tapped": {"below": below, "drgb": drgb, "rgb_w": tap},
        "res": {"below": (below > 0).byte(), "around": around, "passed": passed},
    }[kind]
    dx, sums = mod_fc_bwd.mod_fc_dgrad(dz, w, want_sums=True, **extra)
    count = 3 if kind == "res" else 2
    got, arguments = [dx, sums.sum(0), passed][:count], (dz, w, below, tap, drgb, around)
    wanted = formula(*(t.double() for t in arguments))[:count]
    assert_as_accurate(got, formula(*arguments)[:count], wanted, device.dtype)


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_second_derivatives_are_those_of_the_formula(device):
    check_second_derivatives((2, 9, 6, 4), device, backend="triton")


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_only_wanted_gradients_are_computed(device, monkeypatch):
    *inputs, upstream = layer_inputs((2, 9, 6, 4), device)
    called = []
    for name in ("mod_fc_dgrad", "mod_fc_wgrad"):
        original = getattr(triton_ops, name)
        monkeypatch.setattr(
            triton_ops, name, lambda *a, name=name, original=original: called.append(name) or original(*a)
        )
    x, weight, style, bias = inputs
    x.requires_grad_()
    functional.mod_fc(x, weight, style, bias, backend="triton").backward(upstream)
    assert called == ["mod_fc_dgrad"]


@pytest.mark.parametrize("device", [DEVICES[0], DEVICES[2]], indirect=True)
def test_autocast_is_respected_as_by_linear(device):
    x, weight, style, bias, upstream = (t.float() for t in layer_inputs((2, 40, 64, 32), device))
    weight.requires_grad_()
    with torch.autocast(device.kind, dtype=torch.float16):
        y = functional.mod_fc(x, weight, style, bias, backend="triton")
        assert torch.nn.functional.linear(x, weight).dtype == y.dtype == torch.float16
    (gradient,) = torch.autograd.grad(y, weight, upstream.half())
    assert gradient.dtype == torch.float32
    wanted = ref.mod_fc_ref(*(t.double() for t in (x, weight, style, bias)))
    assert (y.double() - wanted).norm() / wanted.norm() < 1e-3  # x, W' and y rounded to 11 bits


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_operator_is_registered_as_pytorch_asks(interpreter, shared):
    """Schema, fake tensors, autograd; without poison, because opcheck also compares memory that is never written."""
    x, weight, style, bias, upstream = layer_inputs((2, 9, 6, 4), DEVICES[0].values[0], shared=shared)
    arguments = [t.requires_grad_() for t in (x, weight, style, bias)]
    with standing_in(interpreter):
        opcheck(triton_ops.mod_fc, (*arguments, True, True))
        opcheck(triton_ops.mod_fc, (*arguments[:3], None, False, False))
        transposed = [t.detach().mT.contiguous().mT.requires_grad_() for t in arguments[:3]]
        opcheck(triton_ops.mod_fc, (*transposed, None, True, True))
        y, w, d = triton_ops.mod_fc(*(t.detach() for t in arguments), True, True)
        opcheck(triton_ops.mod_fc_act_bwd, (upstream, y))
        opcheck(triton_ops.mod_fc_dgrad, (upstream, w, shared))
        opcheck(triton_ops.mod_fc_wgrad, (upstream, *(t.detach() for t in arguments[:3]), d, True, True))


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_unserved_dtypes_are_named(device):
    *inputs, _ = layer_inputs((1, 2, 3, 4), device)
    with pytest.raises(TypeError, match=r"dtype: got torch\.float64, backend 'triton' takes bfloat16, float16"):
        functional.mod_fc(*(t.double() for t in inputs), backend="triton")

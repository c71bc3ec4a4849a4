"""The modulation kernels against the float64 formulas, gradients from partial sums included."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from cips_fast import functional
from cips_fast import reference as ref
from cips_fast.backends import triton_ops
from cips_fast.kernels.device import standing_in

from .accuracy import assert_as_accurate, draw, value_and_gradients
from .devices import DEVICES

SHAPES = [(1, 1, 1), (2, 3, 33), (3, 100, 64), (1, 5, 2500)]
IDS = [f"B{b}-O{o}-I{i}" for b, o, i in SHAPES]


def modulation_inputs(shape, device):
    batch, outputs, inputs = shape
    rng = torch.Generator().manual_seed(batch * 1009 + outputs * 31 + inputs)
    shapes = [(outputs, inputs), (batch, inputs), (batch, outputs, inputs)]
    return [draw(rng, *shape).to(device.kind, device.dtype) for shape in shapes]


def check_modulation(device, shape, demodulate):
    weight, style, upstream = modulation_inputs(shape, device)

    def call(backend):
        return lambda weight, style: functional.modulate(weight, style, demodulate=demodulate, backend=backend)

    wanted = value_and_gradients(call("reference"), [weight.double(), style.double()], upstream)
    plain = value_and_gradients(call("reference"), [weight, style], upstream)
    got = value_and_gradients(call("triton"), [weight, style], upstream)
    assert_as_accurate(got, plain, wanted, device.dtype, scale=float(upstream.double().norm()))


@pytest.mark.parametrize("device", DEVICES, indirect=True)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
@pytest.mark.parametrize("demodulate", [True, False])
def test_weights_and_their_gradients(device, shape, demodulate):
    check_modulation(device, shape, demodulate)


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 150)), st.booleans())
def test_weights_of_drawn_shapes(device, shape, demodulate):
    check_modulation(device, shape, demodulate)


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_a_style_of_zeros_gives_zeros(device):
    """Only the 1e-8 under the root prevents a division by zero."""
    weight, style, upstream = modulation_inputs((2, 3, 33), device)
    style[1] = 0

    def call(backend):
        return lambda weight, style: functional.modulate(weight, style, backend=backend)

    got = value_and_gradients(call("triton"), [weight, style], upstream)
    wanted = value_and_gradients(call("reference"), [weight.double(), style.double()], upstream)
    assert (got[0][1] == 0).all()
    assert_as_accurate(got, value_and_gradients(call("reference"), [weight, style], upstream), wanted, device.dtype)


@pytest.mark.parametrize("device", DEVICES, indirect=True)
def test_gain_and_compute_dtype_are_folded_in(device):
    from cips_fast.kernels.modulate import modulate_fwd

    weight, style, _ = modulation_inputs((2, 7, 20), device)
    w, d = modulate_fwd(weight.float(), style.float(), demodulate=True, gain=1.5, dtype=device.dtype)
    wanted = 1.5 * ref.modulate_ref(weight.double(), style.double())
    assert w.dtype == device.dtype
    assert_as_accurate([w], [wanted.to(device.dtype)], [wanted], device.dtype)
    norm = ref.modulate_ref(weight.double(), style.double(), False).square().sum(-1)
    assert_as_accurate([d], [norm.float().rsqrt()], [norm.rsqrt()], torch.float32)


@pytest.mark.parametrize("device", [DEVICES[0], DEVICES[2]], indirect=True)
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_partial_sums_are_added_in_the_backward_pass(device, splits):
    from cips_fast.kernels.modulate import modulate_bwd, modulate_fwd

    weight, style, _ = modulation_inputs((3, 9, 20), device)
    parts = draw(torch.Generator().manual_seed(3), 3, splits, 9, 20).to(device.kind, torch.float32)

    def wanted(*inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(1.5 * ref.modulate_ref(*inputs), inputs, parts.sum(1).to(inputs[0].dtype))

    _, d = modulate_fwd(weight, style, demodulate=True, gain=1.5, dtype=torch.float32)
    got = modulate_bwd(parts, weight, style, d, demodulate=True, gain=1.5)
    assert_as_accurate(got, wanted(weight, style), wanted(weight.double(), style.double()), torch.float32)


@pytest.mark.parametrize("device", DEVICES[:1], indirect=True)
def test_second_derivatives_are_those_of_the_formula(device):
    weight, style, upstream = modulation_inputs((2, 4, 6), device)

    def second(tensors, backend):
        tensors = [t.detach().requires_grad_() for t in tensors]
        w = functional.modulate(*tensors, backend=backend)
        gradients = torch.autograd.grad(w, tensors, upstream.to(w.dtype), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), tensors)

    wanted = second([weight.double(), style.double()], "reference")
    assert_as_accurate(second([weight, style], "triton"), second([weight, style], "reference"), wanted, device.dtype)


def test_operators_are_registered_as_pytorch_asks(interpreter):
    weight, style, upstream = modulation_inputs((2, 4, 6), DEVICES[0].values[0])
    with standing_in(interpreter):
        opcheck(triton_ops.modulate, (weight.requires_grad_(), style.requires_grad_(), True))
        transposed = [t.detach().mT.contiguous().mT for t in (weight, style)]
        opcheck(
            triton_ops.modulate,
            (*(t.clone(memory_format=torch.preserve_format).requires_grad_() for t in transposed), True),
        )
        _, d = triton_ops.modulate(weight.detach(), style.detach(), True)
        opcheck(triton_ops.modulate_bwd, (upstream, weight.detach(), style.detach(), d, True))
        opcheck(triton_ops.modulate_bwd, (upstream, *transposed, d, True))

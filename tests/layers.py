"""What tests of one layer share, whichever backend computes it."""

import torch
from torch import Tensor

from cips_fast import functional

from .accuracy import assert_as_accurate, draw, value_and_gradients
from .devices import Device

Shape = tuple[int, int, int, int]  # B, P, I, O


def layer_inputs(shape: Shape, device: Device, *, shared: bool = False) -> list[Tensor]:
    """x, weight, style, bias and an upstream gradient, representable in the device's dtype."""
    batch, pixels, inputs, outputs = shape
    rng = torch.Generator().manual_seed(batch * 1009 + pixels * 31 + inputs)
    shapes = [(1 if shared else batch, pixels, inputs), (outputs, inputs), (batch, inputs), (outputs,)]
    tensors = [draw(rng, *shape) for shape in [*shapes, (batch, pixels, outputs)]]
    return [t.to(device.kind, device.dtype) for t in tensors]


def off_the_kink(inputs: list[Tensor], upstream: Tensor, **options) -> Tensor:
    """The upstream gradient without outputs so near zero that rounding decides the sign, and with it the derivative."""
    y = functional.mod_fc(*(t.double() for t in inputs), **options, backend="reference")
    return torch.where(y.abs() > 0.03, upstream, 0)


def check_layer(
    shape: Shape, device: Device, *, backend: str, shared: bool = False, biased: bool = True, **options
) -> None:
    """Value and all gradients of a layer are as accurate as PyTorch's."""
    *inputs, upstream = layer_inputs(shape, device, shared=shared)
    inputs = inputs if biased else inputs[:3]
    upstream = off_the_kink(inputs, upstream, **options)

    def call(backend):
        return lambda *tensors: functional.mod_fc(*tensors, **options, backend=backend)

    wanted = value_and_gradients(call("reference"), [t.double() for t in inputs], upstream)
    plain = value_and_gradients(call("reference"), inputs, upstream)
    got = value_and_gradients(call(backend), inputs, upstream)
    assert all(t.dtype == device.dtype for t in got)
    assert_as_accurate(got, plain, wanted, device.dtype, scale=float(upstream.double().norm()))


def check_second_derivatives(shape: Shape, device: Device, *, backend: str, **options) -> None:
    """Those of the formula; autocast around the backward pass alone changes nothing."""
    *inputs, upstream = layer_inputs(shape, device)

    def second(tensors, backend, autocast=False):
        tensors = [t.detach().requires_grad_() for t in tensors]
        y = functional.mod_fc(*tensors, **options, backend=backend)
        with torch.autocast(device.kind, dtype=torch.bfloat16, enabled=autocast):
            gradients = torch.autograd.grad(y, tensors, upstream.to(y.dtype), create_graph=True)
        total = sum((g * torch.linspace(-1, 2, g.numel()).view_as(g)).sum() for g in gradients)
        return torch.autograd.grad(total, tensors[:3])  # the bias enters no product twice

    wanted, plain = second([t.double() for t in inputs], "reference"), second(inputs, "reference")
    assert_as_accurate(second(inputs, backend), plain, wanted, device.dtype)
    assert_as_accurate(second(inputs, backend, autocast=True), plain, wanted, device.dtype)

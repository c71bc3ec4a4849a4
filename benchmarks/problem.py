"""One operation on given tensors: what the contenders are given, what they must find, and how much work it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from cips_fast import reference as ref

from .gemm import Product

# Beside twice the error of plain PyTorch: that of one rounding in 16 bits; in float32 that of a long sum in any order.
FLOOR = {torch.float32: 5e-6, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
COMPARED = 1024  # pixels, of more


@dataclass(eq=False)
class Problem:
    """Inputs of an operation by name; those that require a gradient are differentiated if `backward`.

    Args:
        reference: the eager specification, for any dtype, called like every contender: reference(**inputs, **options).
        inputs: leaf tensors.
        options: what is not a tensor.
        dtype: of the result.
        autocast: compute products in `dtype`, whatever the inputs have.
        backward: forward and backward, else forward alone.
        batched: names of the inputs that have a sample dimension, the first.
        pixelwise: names of the inputs that have a pixel dimension, the second, like the result. Of many pixels some are
            compared: the result there, and gradients of the result there.
        channel_dim: where the channels of an image go for the published formulation, by name.
        saved: names of the inputs that the backward pass reads again.
        products: matrix products that cannot be done without.
        deep: many layers follow each other. Where rounding decides the sign before an lrelu it decides the derivative,
            in any implementation: the half of the pixels that come nearest to that is not compared.
    """

    reference: Callable[..., Tensor]
    inputs: Mapping[str, Tensor]
    options: Mapping[str, Any]
    dtype: torch.dtype
    backward: bool
    batched: tuple[str, ...]
    autocast: bool = False
    pixelwise: tuple[str, ...] = ()
    channel_dim: Mapping[str, int] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    products: Sequence[Product] = ()
    deep: bool = False

    @cached_property
    def upstream(self) -> Tensor:
        """A random gradient of the result, of its dtype."""
        with torch.no_grad():
            inputs = {name: t[:, :1] if name in self.pixelwise else t for name, t in self.inputs.items()}
            y = self.apply(self.reference, inputs)
        shape = (len(y), self._pixels or y.shape[1], *y.shape[2:])
        rng = torch.Generator(y.device).manual_seed(1)
        return torch.randn(shape, generator=rng, device=y.device, dtype=torch.float32).to(y.dtype)

    @cached_property
    def sparse_upstream(self) -> Tensor:
        """The same where pixels are compared, and 0 elsewhere."""
        if self.sample is None:
            return self.upstream
        return torch.zeros_like(self.upstream).index_copy_(1, self.sample, self.upstream[:, self.sample])

    @cached_property
    def sample(self) -> Tensor | None:
        """Which pixels are compared; None for all."""
        if self._pixels <= COMPARED and not self.deep:
            return None
        device = self.inputs[self.pixelwise[0]].device
        drawn = torch.randperm(self._pixels, generator=torch.Generator().manual_seed(2)).to(device)
        if not self.deep:
            return drawn[:COMPARED].sort().values
        drawn = drawn[: 2 * COMPARED]
        return drawn[self._margins(drawn).argsort()[len(drawn) // 2 :]].sort().values

    @torch.no_grad()
    def _margins(self, pixels: Tensor) -> Tensor:
        """How far from 0 the pixels stay before an lrelu, in float64, as a share of the layer's mean size."""
        margins = torch.full((len(pixels),), torch.inf, device=pixels.device, dtype=torch.float64)

        activate = ref.activate_ref

        def activate_and_note(x: Tensor, activation: str) -> Tensor:
            if activation == "lrelu":
                margins.copy_(torch.minimum(margins, (x.abs() / x.square().mean().sqrt()).amin((0, 2))))
            return activate(x, activation)

        inputs = {name: (t[:, pixels] if name in self.pixelwise else t).double() for name, t in self.inputs.items()}
        with mock.patch.object(ref, "activate_ref", activate_and_note):
            self.reference(**inputs, **self._options_in_float64)
        return margins

    @property
    def _pixels(self) -> int:
        return self.inputs[self.pixelwise[0]].shape[1] if self.pixelwise else 0

    @property
    def parameters(self) -> list[str]:
        """Names of the inputs whose gradients are computed."""
        return [name for name, tensor in self.inputs.items() if tensor.requires_grad] if self.backward else []

    @property
    def flop(self) -> int:
        """Operations in matrix products."""
        return sum(product.flop for product in self.products)

    @property
    def moved(self) -> int:
        """Bytes that a perfectly fused operation moves: a pass reads each of its inputs and writes each result once.

        The derivative of the activation is not counted, which a bit a feature would do for.
        """
        once = [*self.inputs.values(), self.upstream]  # the result is as large as its gradient
        if self.backward:
            once += [self.upstream, *(self.inputs[name] for name in (*self.saved, *self.parameters))]
        return sum(tensor.nbytes for tensor in once)

    def channels_first(self) -> dict[str, Tensor]:
        """The inputs, images with their channels before their pixels in memory; shapes are the same."""

        def relaid(name: str, tensor: Tensor) -> Tensor:
            dim = self.channel_dim.get(name)
            if dim is None:
                return tensor
            moved = tensor.detach().movedim(-1, dim).contiguous().movedim(dim, -1)
            return moved.requires_grad_(tensor.requires_grad)

        return {name: relaid(name, tensor) for name, tensor in self.inputs.items()}

    def apply(self, function: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        """The result."""
        device = next(iter(inputs.values())).device.type
        with torch.autocast(device, self.dtype, enabled=self.autocast and self.dtype != torch.float32):
            return function(**inputs, **self.options)

    def solver(
        self, function: Callable[..., Tensor], inputs: Mapping[str, Tensor], upstream: Tensor
    ) -> Callable[[], list[Tensor]]:
        """A call without arguments for the result and the gradients, in the order of the inputs."""
        leaves = [inputs[name] for name in self.parameters]
        if not leaves:
            return torch.no_grad()(lambda: [self.apply(function, inputs)])
        laid_out = upstream

        def solve() -> list[Tensor]:
            nonlocal laid_out
            y = self.apply(function, inputs)
            if (laid_out.dtype, laid_out.stride()) != (y.dtype, y.stride()):  # at the first call
                laid_out = torch.empty_like(y).copy_(upstream)
            return [y, *torch.autograd.grad(y, leaves, laid_out)]

        return solve

    @cached_property
    def compared(self) -> dict[str, Tensor]:
        """The inputs, of the compared pixels alone."""
        if self.sample is None:
            return dict(self.inputs)
        return {
            name: t.detach()[:, self.sample].requires_grad_(t.requires_grad) if name in self.pixelwise else t
            for name, t in self.inputs.items()
        }

    @property
    def _compared_upstream(self) -> Tensor:
        return self.upstream if self.sample is None else self.upstream[:, self.sample]

    @cached_property
    def wanted(self) -> list[Tensor]:
        """Result and gradients in float64, one sample after another to save memory."""
        samples = [self._wanted_of_sample(b) for b in range(len(self.inputs[self.batched[0]]))]
        joined = [True, *(name in self.batched for name in self.parameters)]
        columns = zip(joined, zip(*samples, strict=True), strict=True)
        return [torch.cat(parts) if join else sum(parts) for join, parts in columns]

    def _wanted_of_sample(self, b: int) -> list[Tensor]:
        def own(name: str, tensor: Tensor) -> Tensor:
            part = tensor[b : b + 1] if name in self.batched else tensor
            return part.detach().double().requires_grad_(tensor.requires_grad)

        inputs = {name: own(name, tensor) for name, tensor in self.compared.items()}
        y = self.reference(**inputs, **self._options_in_float64)
        leaves = [inputs[name] for name in self.parameters]
        upstream = self._compared_upstream[b : b + 1].double()
        return [y.detach(), *(torch.autograd.grad(y, leaves, upstream) if leaves else ())]

    @cached_property
    def plain_errors(self) -> list[float]:
        """Errors of the specification itself in `dtype`."""
        return self._errors(self.solver(self.reference, self.compared, self._compared_upstream)())

    @property
    def _options_in_float64(self) -> dict[str, Any]:
        return {name: torch.float64 if name == "dtype" else value for name, value in self.options.items()}

    def check(self, found: list[Tensor]) -> None:
        """Raise AssertionError unless result and gradients are as near to float64 as plain PyTorch's, times two."""
        names = ["result", *(f"gradient of {name}" for name in self.parameters)]
        pixelwise = [True, *(name in self.pixelwise for name in self.parameters)]
        if self.sample is not None:
            found = [t[:, self.sample] if each else t for t, each in zip(found, pixelwise, strict=True)]
        for name, error, plain in zip(names, self._errors(found), self.plain_errors, strict=True):
            bound = 2 * plain + FLOOR[self.dtype]
            assert error <= bound, f"{name}: relative error {error:.2g}, may be {bound:.2g}"

    def _errors(self, found: list[Tensor]) -> list[float]:
        pairs = zip(found, self.wanted, strict=True)
        return [float((a.detach().double() - b).norm() / b.norm()) for a, b in pairs]

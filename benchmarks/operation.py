"""One operation on given tensors: its inputs, the results that contenders must give, and the work that it takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from cips_fast import reference as ref

from .gemm import Product

# Relative error that is allowed in addition to twice the error of plain PyTorch: one rounding in 16 bits, and in
# float32 a long sum in any order.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}
COMPARED_PIXELS = 1024  # pixels of a larger image that are compared


@dataclass(eq=False)
class Operation:
    """One operation: its inputs by name, its specification and its matrix products.

    Args:
        reference: the eager specification, for any dtype, called like every contender: reference(**inputs, **options).
        inputs: leaf tensors. With `backward`, those that require a gradient are differentiated.
        options: arguments that are not tensors.
        dtype: dtype of the result.
        autocast: compute products in `dtype`, whatever dtype the inputs have.
        backward: measure forward and backward; otherwise forward alone.
        batched: names of the inputs whose first dimension is the sample.
        pixelwise: names of the inputs whose second dimension is the pixel, like the result. If there are many pixels,
            only some of them are compared: the result there, and gradients of the result there.
        channel_dim: the dimension to which the published formulation moves the channels of an image, by name.
        saved: names of the inputs that the backward pass reads again.
        products: matrix products that every implementation needs.
        deep: many layers follow each other. Where rounding decides the sign before an lrelu, it also decides the
            derivative, in any implementation; the half of the pixels that come nearest to that is not compared.
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
        """A random gradient of the result, in the result's dtype."""
        with torch.no_grad():
            inputs = {name: t[:, :1] if name in self.pixelwise else t for name, t in self.inputs.items()}
            y = self.apply(self.reference, inputs)
        shape = (len(y), self._pixels or y.shape[1], *y.shape[2:])
        rng = torch.Generator(y.device).manual_seed(1)
        return torch.randn(shape, generator=rng, device=y.device, dtype=torch.float32).to(y.dtype)

    @cached_property
    def sparse_upstream(self) -> Tensor:
        """`upstream` at the pixels that are compared, and 0 elsewhere."""
        if self.sample is None:
            return self.upstream
        return torch.zeros_like(self.upstream).index_copy_(1, self.sample, self.upstream[:, self.sample])

    @cached_property
    def sample(self) -> Tensor | None:
        """Indices of the pixels that are compared; None for all."""
        if self._pixels <= COMPARED_PIXELS and not self.deep:
            return None
        device = self.inputs[self.pixelwise[0]].device
        drawn = torch.randperm(self._pixels, generator=torch.Generator().manual_seed(2)).to(device)
        if not self.deep:
            return drawn[:COMPARED_PIXELS].sort().values
        drawn = drawn[: 2 * COMPARED_PIXELS]
        return drawn[self._margins(drawn).argsort()[len(drawn) // 2 :]].sort().values

    @torch.no_grad()
    def _margins(self, pixels: Tensor) -> Tensor:
        """Least distance from 0 that each pixel has before any lrelu, in float64, relative to the layer's rms."""
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
        """Floating-point operations in the matrix products."""
        return sum(product.flop for product in self.products)

    @property
    def moved(self) -> int:
        """Bytes that a perfectly fused operation moves: a pass reads each input and writes each result once.

        The derivative of the activation is not counted; one bit for each feature would be enough for it.
        """
        once = [*self.inputs.values(), self.upstream]  # the result is as large as its gradient
        if self.backward:
            once += [self.upstream, *(self.inputs[name] for name in (*self.saved, *self.parameters))]
        return sum(tensor.nbytes for tensor in once)

    def channels_first(self) -> dict[str, Tensor]:
        """The inputs with the channels of images before the pixels in memory; shapes are the same."""

        def relaid(name: str, tensor: Tensor) -> Tensor:
            dim = self.channel_dim.get(name)
            if dim is None:
                return tensor
            moved = tensor.detach().movedim(-1, dim).contiguous().movedim(dim, -1)
            return moved.requires_grad_(tensor.requires_grad)

        return {name: relaid(name, tensor) for name, tensor in self.inputs.items()}

    def apply(self, function: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        """Call a function with the inputs and options, under autocast if the operation asks for it."""
        device = next(iter(inputs.values())).device.type
        with torch.autocast(device, self.dtype, enabled=self.autocast and self.dtype != torch.float32):
            return function(**inputs, **self.options)

    def runner(
        self, function: Callable[..., Tensor], inputs: Mapping[str, Tensor], upstream: Tensor
    ) -> Callable[[], list[Tensor]]:
        """A function without arguments that gives the result and the gradients, in the order of the inputs."""
        leaves = [inputs[name] for name in self.parameters]
        if not leaves:
            return torch.no_grad()(lambda: [self.apply(function, inputs)])
        laid_out = upstream

        def run() -> list[Tensor]:
            nonlocal laid_out
            y = self.apply(function, inputs)
            if (laid_out.dtype, laid_out.stride()) != (y.dtype, y.stride()):  # in the first call
                laid_out = torch.empty_like(y).copy_(upstream)
            return [y, *torch.autograd.grad(y, leaves, laid_out)]

        return run

    @cached_property
    def compared(self) -> dict[str, Tensor]:
        """The inputs at the compared pixels only."""
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
        """Result and gradients in float64, computed one sample at a time to save memory."""
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
        """Errors of the specification, as plain PyTorch computes it in `dtype`."""
        return self._errors(self.runner(self.reference, self.compared, self._compared_upstream)())

    @property
    def _options_in_float64(self) -> dict[str, Any]:
        return {name: torch.float64 if name == "dtype" else value for name, value in self.options.items()}

    def check(self, found: list[Tensor]) -> None:
        """Compare result and gradients with float64.

        Raises:
            AssertionError: an error is more than twice that of plain PyTorch, plus `TOLERANCE`.
        """
        names = ["result", *(f"gradient of {name}" for name in self.parameters)]
        pixelwise = [True, *(name in self.pixelwise for name in self.parameters)]
        if self.sample is not None:
            found = [t[:, self.sample] if each else t for t, each in zip(found, pixelwise, strict=True)]
        for name, error, plain in zip(names, self._errors(found), self.plain_errors, strict=True):
            bound = 2 * plain + TOLERANCE[self.dtype]
            assert error <= bound, f"{name}: relative error {error:.2g}, may be {bound:.2g}"

    def _errors(self, found: list[Tensor]) -> list[float]:
        pairs = zip(found, self.wanted, strict=True)
        return [float((a.detach().double() - b).norm() / b.norm()) for a, b in pairs]

"""One operation on given tensors: what the contenders are given, what they must find, and how much work it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

# Beside twice the error of plain PyTorch: that of one rounding in 16 bits; in float32 that of a long sum in any order.
FLOOR = {torch.float32: 5e-6, torch.float16: 2.5e-4, torch.bfloat16: 2e-3}


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
        channel_dim: where the channels of an image go for the published formulation, by name.
        saved: names of the inputs that the backward pass reads again.
        flop: operations in the forward pass's matrix products.
    """

    reference: Callable[..., Tensor]
    inputs: Mapping[str, Tensor]
    options: Mapping[str, Any]
    dtype: torch.dtype
    backward: bool
    batched: tuple[str, ...]
    autocast: bool = False
    channel_dim: Mapping[str, int] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    flop: float = 0

    @cached_property
    def upstream(self) -> Tensor:
        """A random gradient of the result, of its dtype."""
        with torch.no_grad():
            y = self.apply(self.reference, self.inputs)
        rng = torch.Generator(y.device).manual_seed(1)
        return torch.randn(y.shape, generator=rng, device=y.device, dtype=torch.float32).to(y.dtype)

    @property
    def parameters(self) -> list[str]:
        """Names of the inputs whose gradients are computed."""
        return [name for name, tensor in self.inputs.items() if tensor.requires_grad] if self.backward else []

    @property
    def products(self) -> float:
        """Operations in matrix products: the backward pass has two for each of the forward pass."""
        return self.flop * (3 if self.backward else 1)

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

    def solver(self, function: Callable[..., Tensor], inputs: Mapping[str, Tensor]) -> Callable[[], list[Tensor]]:
        """A call without arguments for the result and the gradients, in the order of the inputs."""
        leaves = [inputs[name] for name in self.parameters]
        if not leaves:
            return torch.no_grad()(lambda: [self.apply(function, inputs)])
        with torch.no_grad():
            upstream = torch.empty_like(self.apply(function, inputs)).copy_(self.upstream)  # laid out like the result

        def solve() -> list[Tensor]:
            y = self.apply(function, inputs)
            return [y, *torch.autograd.grad(y, leaves, upstream)]

        return solve

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

        inputs = {name: own(name, tensor) for name, tensor in self.inputs.items()}
        options = {name: torch.float64 if name == "dtype" else value for name, value in self.options.items()}
        y = self.reference(**inputs, **options)
        leaves = [inputs[name] for name in self.parameters]
        return [y.detach(), *(torch.autograd.grad(y, leaves, self.upstream[b : b + 1].double()) if leaves else ())]

    @cached_property
    def plain_errors(self) -> list[float]:
        """Errors of the specification itself in `dtype`."""
        return self._errors(self.solver(self.reference, self.inputs)())

    def check(self, found: list[Tensor]) -> None:
        """Raise AssertionError unless result and gradients are as near to float64 as plain PyTorch's, times two."""
        names = ["result", *(f"gradient of {name}" for name in self.parameters)]
        for name, error, plain in zip(names, self._errors(found), self.plain_errors, strict=True):
            bound = 2 * plain + FLOOR[self.dtype]
            assert error <= bound, f"{name}: relative error {error:.2g}, may be {bound:.2g}"

    def _errors(self, found: list[Tensor]) -> list[float]:
        pairs = zip(found, self.wanted, strict=True)
        return [float((a.detach().double() - b).norm() / b.norm()) for a, b in pairs]

"""How far a result may be from the float64 reference: one table for all tests of kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

# For results in which plain PyTorch happens to be exact: a tenth of a rounding in 16 bits, a few roundings in float32.
FLOORS = {torch.float32: 1e-6, torch.float16: 5e-5, torch.bfloat16: 4e-4}


def relative_error(got: Tensor, wanted: Tensor, scale: float = 0.0) -> float:
    """‖got - wanted‖ / max(‖wanted‖, scale), in float64."""
    wanted = wanted.detach().double().cpu()
    difference = got.detach().double().cpu() - wanted
    return float(difference.norm() / max(float(wanted.norm()), scale, 1e-30))


def assert_as_accurate(
    got: list[Tensor], plain: list[Tensor], wanted: list[Tensor], dtype: torch.dtype, scale: float = 0.0
) -> None:
    """Each result is off by at most twice what plain PyTorch in the same dtype is off, plus a floor.

    Args:
        got: results under test.
        plain: the same of plain PyTorch in `dtype`.
        wanted: the same in float64.
        dtype: that the results were computed in.
        scale: norm of the terms of which a result is the sum; what cancels keeps the error of its terms.
    """
    for index, (ours, theirs, truth) in enumerate(zip(got, plain, wanted, strict=True)):
        assert ours.shape == truth.shape, f"result {index}: got shape {list(ours.shape)}, wanted {list(truth.shape)}"
        error, allowed = relative_error(ours, truth, scale), 2 * relative_error(theirs, truth, scale) + FLOORS[dtype]
        assert error <= allowed, f"result {index}: error {error:.2e}, may be {allowed:.2e}"


def draw(rng: torch.Generator, *shape: int) -> Tensor:
    """Normal numbers, float64."""
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def value_and_gradients(call: Callable[..., Tensor], tensors: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """What a call returns, and its gradients to all tensors."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    value = call(*tensors)
    return [value, *torch.autograd.grad(value, tensors, upstream.to(value.dtype))]

"""Plain matrix products of an operation's shapes: the rate that it could reach if everything else took no time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Product(NamedTuple):
    """`count` products [rows, inner] by [inner, cols]."""

    count: int
    rows: int
    inner: int
    cols: int

    @property
    def flop(self) -> int:
        """Floating-point operations of all `count` products."""
        return 2 * self.count * self.rows * self.inner * self.cols


def layer_products(images: int, pixels: int, inputs: int, outputs: int, *, backward: bool) -> list[Product]:
    """The products of a layer: y = x Wᵀ; in the backward pass dx = dy W and dW = dyᵀ x."""
    products = [Product(images, pixels, inputs, outputs)]
    if backward:
        products += [Product(images, pixels, outputs, inputs), Product(images, outputs, pixels, inputs)]
    return products


class Gemm:
    """The distinct products of an operation, each with its own factors; results go to memory that is already in use."""

    def __init__(self, products: Sequence[Product], dtype: torch.dtype, device: str):
        self.counts: dict[tuple[int, int, int], int] = {}
        for count, *shape in products:
            self.counts[tuple(shape)] = self.counts.get(tuple(shape), 0) + count
        self.factors = {shape: _factors(*shape, dtype, device) for shape in self.counts}

    def calls(self) -> list[tuple[int, "Call"]]:
        """Pairs of how often the operation needs a product, and the product."""
        return [(count, Call(*self.factors[shape])) for shape, count in self.counts.items()]


class Call(NamedTuple):
    """One product, a function without arguments."""

    a: torch.Tensor
    b: torch.Tensor
    out: torch.Tensor

    def __call__(self) -> None:
        torch.mm(self.a, self.b, out=self.out)


def _factors(rows: int, inner: int, cols: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """Factors and result, laid out as for x Wᵀ, or as for dyᵀ x if the sum is over pixels, the longest dimension."""
    a, b = _numbers(rows, inner, dtype, device), _numbers(cols, inner, dtype, device).mT
    if inner > max(rows, cols):
        a, b = a.mT.contiguous().mT, b.contiguous()
    return a, b, torch.empty(rows, cols, dtype=dtype, device=device)


def _numbers(rows: int, cols: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Normal random numbers. Rows repeat: the values do not matter, and drawing all takes longer than multiplying."""
    some = min(rows, 1024)
    return torch.randn(some, cols, device=device).to(dtype).repeat(-(-rows // some), 1)[:rows]

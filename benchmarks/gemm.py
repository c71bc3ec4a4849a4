"""The rate of plain matrix products of an operation's shapes: what it could reach if all else were free."""

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
        """Operations of all."""
        return 2 * self.count * self.rows * self.inner * self.cols


def layer_products(images: int, pixels: int, inputs: int, outputs: int, *, backward: bool) -> list[Product]:
    """Those of a layer: y = x Wᵀ; going back dx = dy W and dW = dyᵀ x."""
    products = [Product(images, pixels, inputs, outputs)]
    if backward:
        products += [Product(images, pixels, outputs, inputs), Product(images, outputs, pixels, inputs)]
    return products


class Gemm:
    """The distinct products among some, on tensors of their own; results go where memory is in use already."""

    def __init__(self, products: Sequence[Product], dtype: torch.dtype, device: str):
        self.counts: dict[tuple[int, int, int], int] = {}
        for count, *shape in products:
            self.counts[tuple(shape)] = self.counts.get(tuple(shape), 0) + count
        self.factors = {shape: _factors(*shape, dtype, device) for shape in self.counts}

    def calls(self) -> list[tuple[int, "Call"]]:
        """How often an operation needs each product, and the product."""
        return [(count, Call(*self.factors[shape])) for shape, count in self.counts.items()]


class Call(NamedTuple):
    """One product."""

    a: torch.Tensor
    b: torch.Tensor
    out: torch.Tensor

    def __call__(self) -> None:
        torch.mm(self.a, self.b, out=self.out)


def _factors(rows: int, inner: int, cols: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """Laid out as for x Wᵀ, or where the sum is over pixels, the longest dimension, as for dyᵀ x."""
    a, b = _numbers(rows, inner, dtype, device), _numbers(cols, inner, dtype, device).mT
    if inner > max(rows, cols):
        a, b = a.mT.contiguous().mT, b.contiguous()
    return a, b, torch.empty(rows, cols, dtype=dtype, device=device)


def _numbers(rows: int, cols: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Normal ones; rows repeat, for what is drawn does not matter and drawing takes longer than multiplying."""
    some = min(rows, 1024)
    return torch.randn(some, cols, device=device).to(dtype).repeat(-(-rows // some), 1)[:rows]

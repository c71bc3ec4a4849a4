"""What autocast does to products, on devices with and without it, eagerly and compiled."""

import pytest
import torch

from cips_fast.backends.autocast import autocast_dtype, without_autocast


def product(x):
    """x² in full precision, rounded to autocast's dtype."""
    dtype = autocast_dtype(x) or x.dtype
    with without_autocast(x):
        return (x @ x).to(dtype)


@pytest.fixture(params=["eager", "compiled"])
def call(request):
    """`product`; compiled as one graph, of which Dynamo has to understand every line."""
    return product if request.param == "eager" else torch.compile(product, fullgraph=True, backend="eager")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rounded", [torch.bfloat16, torch.float16], ids=str)
def test_products_on_the_cpu(call, dtype, rounded):
    x = torch.randn(4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    exact = x @ x
    assert torch.equal(call(x), exact)
    with torch.autocast("cpu", dtype=rounded):
        assert torch.equal(call(x), exact if dtype == torch.float64 else exact.to(rounded))


def test_a_device_without_autocast(call):
    x = torch.empty(4, 4, device="meta")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (call(x).device.type, call(x).dtype) == ("meta", torch.float32)

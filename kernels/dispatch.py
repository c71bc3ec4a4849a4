"""Inference by the kernels: a whole network in one launch, or layer by layer, whichever is faster here."""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from . import layered, stack, stack_narrow
from .autotune import fastest_method
from .device import architecture
from .network import Network
from .tiles import stack_fits


def infer_in_one_launch(
    network: Network, coords: Tensor, table_coords: Tensor | None = None, *, dtype: torch.dtype
) -> Tensor:
    """Colours in one launch, with the activations on chip if the network is narrow enough; arguments as in `infer`."""
    kernel = stack_narrow if stack_narrow.serves(network, dtype, architecture(coords.device)) else stack
    return kernel.infer(network, coords, table_coords, dtype=dtype)


METHODS: dict[str, Callable[..., Tensor]] = {"stack": infer_in_one_launch, "layered": layered.infer}
CHOICES = ("auto", *METHODS)


def infer(
    network: Network,
    coords: Tensor,
    table_coords: Tensor | None = None,
    *,
    dtype: torch.dtype,
    inference: str = "auto",
) -> Tensor:
    """Colours at coordinates, without gradients.

    Args:
        network: the parameters.
        coords: float32 [B|1, P, D].
        table_coords: where the embedding table is read, float32 [B|1, P, 2]; by default at `coords`.
        dtype: dtype of weights and activations: bfloat16, float16 or float32.
        inference: `stack`, one launch for all layers, which keeps the activations of narrow networks on chip;
            `layered`, one launch per layer; `auto`, see `method_for`.

    Returns:
        float32 [B, P, 3].

    Raises:
        ValueError: an unknown method of inference.
    """
    chosen = method_for(network, coords, table_coords, dtype) if inference == "auto" else inference
    if chosen not in METHODS:
        raise ValueError(f"inference: got {chosen!r}, may be {', '.join(map(repr, CHOICES))}")
    return METHODS[chosen](network, coords, table_coords, dtype=dtype)


def method_for(network: Network, coords: Tensor, table_coords: Tensor | None, dtype: torch.dtype) -> str:
    """The method to use for `auto`.

    The environment variable CIPS_FAST_INFERENCE decides, if it is set. Else the method is the fastest one as measured
    on this GPU or, where nothing is measured, the one that the tables of tiles suggest.
    """
    asked = os.environ.get("CIPS_FAST_INFERENCE", "auto")
    if asked != "auto":
        return asked
    B, P, widths = network.batch, coords.shape[1], network.widths
    arch = architecture(coords.device)
    # A narrow network in one launch has as many tiles of pixels as a launch of one of its layers. So even for few
    # pixels, launches layer by layer would not keep more processors busy.
    in_one_launch = stack_narrow.serves(network, dtype, arch) or stack_fits(B * P, max(widths), dtype, arch)
    suggested = "stack" if in_one_launch else "layered"
    prefix = "res " if network.residual else ""
    kind = f"{prefix}{len(widths)} layers {max(widths)}..{min(widths)} {network.freq.shape[0]}"
    return fastest_method(
        f"render {kind}",  # a key of measurements that users have on disk
        (B, P),
        sorted(METHODS, key=lambda name: name != suggested),
        lambda name: METHODS[name](network, coords, table_coords, dtype=dtype),
        torch.empty(0, dtype=dtype, device=coords.device),
    )

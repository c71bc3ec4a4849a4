"""Which way a network is rendered: in one launch, or layer by layer."""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from . import layered, stack, stack_narrow
from .autotune import measured_way
from .device import architecture
from .network import Network
from .tiles import stack_fits


def render_at_once(network: Network, coords: Tensor, at: Tensor | None = None, *, dtype: torch.dtype) -> Tensor:
    """Colours in one launch, on chip where the network is narrow enough; the arguments are those of `render`."""
    form = stack_narrow if stack_narrow.serves(network, dtype, architecture(coords.device)) else stack
    return form.render(network, coords, at, dtype=dtype)


WAYS: dict[str, Callable[..., Tensor]] = {"stack": render_at_once, "layered": layered.render}
CHOICES = ("auto", *WAYS)


def render(
    network: Network, coords: Tensor, at: Tensor | None = None, *, dtype: torch.dtype, inference: str = "auto"
) -> Tensor:
    """Colours at coordinates, without gradients.

    Args:
        network: its parameters.
        coords: float32 [B|1, P, D].
        at: where the table is read, float32 [B|1, P, 2]; the coordinates themselves unless given.
        dtype: of weights and activations: bfloat16, float16 or float32.
        inference: `stack`, one launch for all layers, which keeps the activations of narrow networks on chip;
            `layered`, one a layer; `auto`, see `way`.

    Returns:
        float32 [B, P, 3].

    Raises:
        ValueError: an unknown way.
    """
    chosen = way(network, coords, at, dtype) if inference == "auto" else inference
    if chosen not in WAYS:
        raise ValueError(f"inference: got {chosen!r}, may be {', '.join(map(repr, CHOICES))}")
    return WAYS[chosen](network, coords, at, dtype=dtype)


def way(network: Network, coords: Tensor, at: Tensor | None, dtype: torch.dtype) -> str:
    """The environment variable CIPS_FAST_INFERENCE, else the fastest as measured on this GPU, else the table's."""
    asked = os.environ.get("CIPS_FAST_INFERENCE", "auto")
    if asked != "auto":
        return asked
    B, P, widths = network.batch, coords.shape[1], network.widths
    arch = architecture(coords.device)
    # A layer of a network that stays on chip has no more tiles than the whole of it.
    at_once = stack_narrow.serves(network, dtype, arch) or stack_fits(B * P, max(widths), dtype, arch)
    table = "stack" if at_once else "layered"
    kinds = f"{'res ' * network.residual}{len(widths)} layers {max(widths)}..{min(widths)} {network.freq.shape[0]}"
    return measured_way(
        f"render {kinds}",
        (B, P),
        sorted(WAYS, key=lambda name: name != table),
        lambda name: WAYS[name](network, coords, at, dtype=dtype),
        torch.empty(0, dtype=dtype, device=coords.device),
    )

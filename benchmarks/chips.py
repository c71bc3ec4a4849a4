"""How fast a GPU could be at best: the vendors' peak rates, and the time that work cannot take less of."""

from dataclasses import dataclass

import torch

from cips_fast.kernels.launch import precision


@dataclass(frozen=True)
class Chip:
    """Peak rates: dense matrix products of 16-bit factors in FLOP/s, memory in bytes/s."""

    products: float
    memory: float


# From the data sheets, under the names that `torch.cuda.get_device_name()` gives.
A100_40GB = Chip(312e12, 1.555e12)
CHIPS = {
    "NVIDIA A100-SXM4-40GB": A100_40GB,
    "NVIDIA A100-PCIE-40GB": A100_40GB,
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 2.039e12),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 3.35e12),
    "NVIDIA H200": Chip(989e12, 4.8e12),
    "NVIDIA B200": Chip(2250e12, 8.0e12),
    "AMD Instinct MI300X": Chip(1307e12, 5.3e12),
}


def products_setting() -> str:
    """How PyTorch is set to multiply float32 matrices on an NVIDIA GPU: `tf32` or `ieee`."""
    return precision(torch.float32, "sm_80")


def floor_seconds(name: str, dtype: torch.dtype, flop: float, moved: float) -> float | None:
    """The least time that products and memory traffic take; None for a chip or a precision that is not in the table.

    Args:
        name: of the device.
        dtype: of the factors; float32 counts where PyTorch is set to multiply it as tf32, at half the 16-bit rate.
        flop: operations in matrix products.
        moved: bytes read and written.
    """
    chip = CHIPS.get(name)
    if chip is None:
        return None
    if flop and dtype == torch.float32:
        if "NVIDIA" not in name or products_setting() != "tf32":
            return None
        flop = 2 * flop
    return max(flop / chip.products, moved / chip.memory)

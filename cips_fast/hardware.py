"""Precisions by name, what a device computes natively, and what PyTorch knows about the processor."""

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def native_half(device: torch.device | str) -> torch.dtype | None:
    """The 16-bit dtype that a device multiplies natively; None if float32 is faster.

    Where a device has both, it is bfloat16, which needs no loss scaling.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind == "cpu" and cpu_multiplies_bfloat16():
        return torch.bfloat16
    return None


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has bfloat16 matrix instructions. Without them PyTorch emulates bfloat16, which is slow."""
    return any(cpu_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_capabilities() -> dict[str, bool | int | str]:
    """What PyTorch knows about the processor; empty in versions of PyTorch that do not say."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}

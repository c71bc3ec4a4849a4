"""What a device computes natively, and what PyTorch knows of the processor."""

import torch


def native_half(device: torch.device | str) -> torch.dtype | None:
    """The 16-bit dtype that a device multiplies natively; None where float32 is faster.

    bfloat16 before float16 where both are there: it needs no loss scaling.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind == "cpu" and cpu_multiplies_bfloat16():
        return torch.bfloat16
    return None


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has bfloat16 matrix instructions; PyTorch would emulate them elsewhere, at a loss."""
    return any(cpu_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_capabilities() -> dict[str, bool | int | str]:
    """What PyTorch knows of the processor; nothing in versions that do not tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}

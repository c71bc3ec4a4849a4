"""Memory: how much was used, and what an error looks like where it did not suffice."""

import sys

import torch

NO_MEMORY = ("can't allocate memory", "out of memory", "can't start new thread")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or PyTorch raised it for want of memory; PyTorch says so in words on some devices."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def peak_memory_mib(device: torch.device) -> float | None:
    """Highest memory so far: the device's, or this process's own on a CPU; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

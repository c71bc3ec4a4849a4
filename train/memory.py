"""How much memory a run has used, and how much it may use."""

import contextlib
import os
import sys
from pathlib import Path

import torch

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def peak_memory_mib(device: torch.device) -> float | None:
    """Highest memory use so far, of the device, or of this process on a CPU; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory_bytes(device: str) -> int | None:
    """The memory of a GPU, or what this process may use of the machine's memory; None if the system does not say."""
    kind = torch.device(device)
    if kind.type == "cuda":
        return torch.cuda.get_device_properties(kind).total_memory
    if kind.type != "cpu":
        return None
    limits = [limit for limit in (_physical(), _of_process(), *map(_of_container, CGROUP_LIMITS)) if limit is not None]
    return min(limits, default=None)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf; other systems may not know the names
        return None


def _of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _of_container(file: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):  # there is no such file, or it holds the word max
        return int(Path(file).read_text())
    return None

"""Peak memory of a call: of PyTorch's allocator on a GPU, of the process on Linux, otherwise unknown."""

import ctypes
import re
from pathlib import Path

import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEASURABLE = torch.cuda.is_available() or FORGET.exists()


def forget_peak() -> int:
    """Restart the measurement of the peak; return the bytes in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    _give_back()
    FORGET.write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most bytes in use since `forget_peak`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _give_back() -> None:
    """Return freed memory to the system. Otherwise the next call reuses it and seems to need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    """A memory figure of this process in bytes, by its name in /proc/self/status."""
    (kibibytes,) = re.findall(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    return int(kibibytes) * 1024

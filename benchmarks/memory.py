"""Peak memory of a call: what PyTorch's allocator held on a GPU, what the process held on Linux, else unknown."""

import ctypes
import re
from pathlib import Path

import torch

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEASURABLE = torch.cuda.is_available() or FORGET.exists()


def forget_peak() -> int:
    """Begin to measure the peak anew: the bytes in use."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    _give_back()
    FORGET.write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Most bytes in use since."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _give_back() -> None:
    """What was freed goes back to the system, or the next call would seem to need none of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the GNU library has it
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    (kibibytes,) = re.findall(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    return int(kibibytes) * 1024

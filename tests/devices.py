"""The devices and dtypes on which tests run kernels: Triton's interpreter everywhere, and a GPU if there is one."""

from dataclasses import dataclass

import pytest
import torch

HAVE_GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Device:
    """What runs the kernels, and the dtype of the tensors."""

    name: str  # `interpreter`, `gpu`, `cpu` or `emulated`
    kind: str  # PyTorch's name of the device that the tensors are on: `cpu` or `cuda`
    dtype: torch.dtype


def _device(name: str, kind: str, dtype: torch.dtype) -> pytest.param:
    marks = [pytest.mark.skipif(not HAVE_GPU, reason="no GPU")] if kind == "cuda" else []
    return pytest.param(Device(name, kind, dtype), id=f"{name}-{str(dtype).removeprefix('torch.')}", marks=marks)


# Without bfloat16 in the interpreter, which computes on its bits as if they were integers. Tests that execute compiled
# code prove that dtype.
DEVICES = [
    _device("interpreter", "cpu", torch.float32),
    _device("interpreter", "cpu", torch.float16),
    _device("gpu", "cuda", torch.float32),
    _device("gpu", "cuda", torch.float16),
    _device("gpu", "cuda", torch.bfloat16),
]

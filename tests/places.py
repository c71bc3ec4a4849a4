"""Where the kernels' tests run them: in Triton's interpreter everywhere, and on a GPU where there is one."""

from dataclasses import dataclass

import pytest
import torch

HAVE_GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Place:
    """A device for the tensors and a dtype."""

    name: str
    device: str
    dtype: torch.dtype


def _place(name: str, device: str, dtype: torch.dtype) -> pytest.param:
    marks = [pytest.mark.skipif(not HAVE_GPU, reason="no GPU")] if device == "cuda" else []
    return pytest.param(Place(name, device, dtype), id=f"{name}-{str(dtype).removeprefix('torch.')}", marks=marks)


# The interpreter computes on bfloat16's bits as if they were integers: that dtype is proved by executing compiled code.
PLACES = [
    _place("interpreter", "cpu", torch.float32),
    _place("interpreter", "cpu", torch.float16),
    _place("gpu", "cuda", torch.float32),
    _place("gpu", "cuda", torch.float16),
    _place("gpu", "cuda", torch.bfloat16),
]

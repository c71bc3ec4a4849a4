"""The private names of PyTorch that the backends use. When a new version of PyTorch changes one, it changes here."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def in_transform() -> bool:
    """Whether a function transform of torch.func or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def linear_with_post_op(x: Tensor, weight: Tensor, bias: Tensor | None, negative_slope: float | None) -> Tensor:
    """x Wᵀ + β by one oneDNN call, followed by a leaky ReLU unless `negative_slope` is None.

    x [..., I], weight [O, I] and bias [O] on a CPU, in float32 or bfloat16 -> [..., O].
    """
    post_op = ("none", []) if negative_slope is None else ("leaky_relu", [negative_slope])
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, *post_op, "")


def onednn_multiplies_bfloat16() -> bool:
    """Whether PyTorch's oneDNN multiplies bfloat16 matrices on this processor."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()

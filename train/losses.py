"""Losses of the two players, and the moving average of the generator."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E[softplus(-D(x))] + E[softplus(D(G(z)))]   (Goodfellow et al., arXiv 1406.2661): [B, 1], [B, 1] -> []."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss E[softplus(-D(G(z)))]   (Goodfellow et al., arXiv 1406.2661): [B, 1] -> []."""
    return F.softplus(-fake_logits).mean()


def gradient_penalty(real_logits: Tensor, images: Tensor) -> Tensor:
    """E‖∇ₓD(x)‖², the norm that R1 multiplies by γ/2   (Mescheder et al., arXiv 1801.04406): [B, 1], [B, ...] -> []."""
    (gradient,) = torch.autograd.grad(real_logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def ema_decay(batch: int, images_seen: int, half_life: float, ramp_up: float) -> float:
    """Decay of a moving average in one step; its half-life is counted in images.

    Args:
        batch: images a step.
        images_seen: images so far.
        half_life: number of images after which a weight counts half as much.
        ramp_up: the half-life is at most this share of the images seen, so that early weights are soon forgotten.

    Returns:
        0.5^(batch / half-life); 0 before the first image.
    """
    images = min(half_life, images_seen * ramp_up)
    return 0.5 ** (batch / images) if images > 0 else 0.0


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average ← decay·average + (1 - decay)·model for all trained parameters; buffers are copied."""
    pairs = [(a, m) for a, m in zip(average.parameters(), model.parameters(), strict=True) if m.requires_grad]
    torch._foreach_lerp_([a for a, _ in pairs], [m for _, m in pairs], 1 - decay)
    for a, m in zip(average.buffers(), model.buffers(), strict=True):
        a.copy_(m)

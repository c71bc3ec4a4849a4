"""Images as functions of a pixel's place, for what asks for pixels one by one."""

import torch

from cips_fast import CIPSGenerator
from cips_fast.render import Renderer


def by_index(height, width, asked=None):
    """Colours that tell which pixel was asked for, exact below 2^24 pixels; `asked` is a list of what was."""

    def evaluate(rows, columns):
        assert rows.dtype == columns.dtype == torch.int64
        assert rows.shape == columns.shape
        index = rows * width + columns
        if asked is not None:
            asked.append(index)
        return torch.stack([rows, columns, index], 1).float()

    return evaluate


def landscape(height, width):
    """Soft hills with an edge between them and a sun, [H, W, 3]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    hills = torch.sigmoid((y - 0.2 * torch.sin(4 * x)) * 60)
    sun = torch.sigmoid((0.3 - torch.hypot(x + 0.4, y + 0.5)) * 60)
    sky = torch.stack([0.3 * y, 0.5 - 0.4 * x * y, 0.8 - 0.3 * x**2], -1)
    ground = torch.stack([-0.2 + 0.3 * x, 0.1 + 0.2 * torch.cos(3 * x), -0.6 + 0.2 * y], -1)
    image = torch.lerp(sky, ground, hills[..., None])
    return torch.lerp(image, torch.tensor([0.9, 0.4, -0.5]), sun[..., None])


def cubic(height, width):
    """A different polynomial of degree 3 in each colour, of order 1, float64 [H, W, 3]."""
    rows, columns = (torch.arange(size, dtype=torch.float64) / 32 - 1 for size in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x**3 - 2 * x * y + y, x * x * y + y**3 - 0.5, 1 + x - x * y * y], -1)


def renderer(height, width):
    """Of a small generator."""
    torch.manual_seed(0)
    generator = CIPSGenerator(size=16, width=32, embedding_size=8, style_features=32).eval().requires_grad_(False)
    return Renderer(generator, generator.mapping(torch.randn(1, 32))[0], height, width)


def psnr(image, full):
    """In decibels, of colours in [-1, 1]."""
    return float(10 * torch.log10(4 / (image - full).square().mean()))

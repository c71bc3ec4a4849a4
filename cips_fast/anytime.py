"""Progressive rendering: from coarse to fine, a whole image after every pass, and no pixel is computed twice.

Every pass halves the distance between computed pixels, as Adam7 does in PNG; the pixels between them are interpolated.
After the last pass nothing is interpolated: it is the full image, bit for bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import lattice
from .checks import ArgumentError
from .pixels import Evaluator, check_chunk, check_colours, check_size


@dataclass(frozen=True)
class Pass:
    """The image after a pass.

    Attributes:
        image: colours, float32 [H, W, 3]: computed for pixels whose row and column are multiples of `spacing`, and
            interpolated for the others. All passes share this memory: copy what you need after the next pass.
        spacing: pixels between computed rows and columns.
        new: number of pixels that this pass computed.
        evaluated: number of pixels that are computed so far.
        total: number of pixels of the image.
    """

    image: Tensor
    spacing: int
    new: int
    evaluated: int
    total: int


def progressive(
    evaluate: Evaluator,
    height: int,
    width: int,
    *,
    coarsest: int = 64,
    chunk: int = 1 << 16,
    device: torch.device | str | None = None,
) -> Iterator[Pass]:
    """Render the pixels of every `coarsest`-th row and column, then of every `coarsest`/2-th, and so on to all.

    Passes that would compute no new pixel, which happens in images smaller than `coarsest`, are left out.

    Args:
        evaluate: see `cips_fast.pixels.Evaluator`.
        height, width: pixels.
        coarsest: the first pass's spacing, a power of two; 1 computes the whole image in a single pass.
        chunk: number of pixels in one call of `evaluate`.
        device: device of the indices and the image.

    Yields:
        A `Pass` after each pass; stop the iteration to stop early.

    Raises:
        ValueError: a size or the chunk is below 1, the spacing is not a power of two, or colours have another shape
            than [N, 3].
    """
    check_size(height, width)
    check_chunk(chunk)
    if coarsest < 1 or coarsest & (coarsest - 1):
        raise ArgumentError("coarsest", f"got {coarsest}, must be a power of two")
    return _passes(evaluate, torch.empty(3, height, width, dtype=torch.float32, device=device), coarsest, chunk)


@torch.no_grad()
def _passes(evaluate: Evaluator, image: Tensor, coarsest: int, chunk: int) -> Iterator[Pass]:
    evaluated = 0
    total = image[0].numel()
    spacing = coarsest
    while evaluated < total:
        first = spacing == coarsest
        stride = spacing if first else 2 * spacing
        origins = [(0, 0)] if first else [(0, spacing), (spacing, 0), (spacing, spacing)]
        new = sum(_evaluate_lattice(evaluate, image, origin, stride, chunk) for origin in origins)
        evaluated += new
        if new:
            _interpolate(image, spacing)
            yield Pass(image.permute(1, 2, 0), spacing, new, evaluated, total)
        spacing //= 2


def _evaluate_lattice(evaluate: Evaluator, image: Tensor, origin: tuple[int, int], stride: int, chunk: int) -> int:
    """Compute every stride-th row and column of an image [3, H, W] from an origin on; return the number of pixels."""
    target = image[:, origin[0] :: stride, origin[1] :: stride]
    columns = target.shape[2]
    count = target[0].numel()
    for start in range(0, count, chunk):
        index = torch.arange(start, min(start + chunk, count), device=image.device)
        row, column = index // columns, index % columns
        colours = check_colours(evaluate(origin[0] + stride * row, origin[1] + stride * column), len(index))
        target[:, row, column] = colours.T.to(image)
    return count


def _interpolate(image: Tensor, spacing: int) -> None:
    """Interpolate all pixels of an image [3, H, W] from those at multiples of the spacing."""
    while spacing > 1:
        for plane in image.split(1):  # one colour channel at a time, to save memory
            lattice.fill_centres(plane, spacing)
            lattice.fill_edges(plane, spacing)
        spacing //= 2

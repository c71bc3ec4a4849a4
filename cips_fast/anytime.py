"""Progressive rendering: a whole image at any time, from coarse to fine, in which no pixel is computed twice.

Every pass halves the distance between computed pixels, as Adam7 does in PNG; those between them are interpolated. The
last pass leaves nothing to interpolate: it is the full image, bit for bit.
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
    """What is known of an image after a pass.

    Attributes:
        image: colours, float32 [H, W, 3]; of the pixels whose row and column are multiples of `spacing` as computed, of
            the others interpolated. All passes share this memory: copy what shall outlive the next one.
        spacing: pixels between computed rows and columns.
        new: pixels that this pass computed.
        evaluated: pixels that were computed so far.
        total: pixels of the image.
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
    """Render pixels of every `coarsest`-th row and column, then those of every half, quarter, ... of that.

    Passes that would compute nothing, in images smaller than `coarsest`, are left out.

    Args:
        evaluate: see `cips_fast.pixels.Evaluator`.
        height, width: pixels.
        coarsest: the first pass's spacing, a power of two; 1 for the whole image in a single pass.
        chunk: pixels that `evaluate` is asked for at a time.
        device: where indices and the image are made.

    Yields:
        One `Pass` after another; to stop early, stop asking.

    Raises:
        ValueError: a size or chunk below 1, another spacing, or colours of another shape than [N, 3].
    """
    check_size(height, width)
    check_chunk(chunk)
    if coarsest < 1 or coarsest & (coarsest - 1):
        raise ArgumentError("coarsest", f"got {coarsest}, must be a power of two")
    return _passes(evaluate, torch.empty(3, height, width, dtype=torch.float32, device=device), coarsest, chunk)


@torch.no_grad()
def _passes(evaluate: Evaluator, image: Tensor, coarsest: int, chunk: int) -> Iterator[Pass]:
    evaluated, total = 0, image[0].numel()
    spacing = coarsest
    while evaluated < total:
        first = spacing == coarsest
        step = spacing if first else 2 * spacing
        origins = [(0, 0)] if first else [(0, spacing), (spacing, 0), (spacing, spacing)]
        new = sum(_evaluate_lattice(evaluate, image, origin, step, chunk) for origin in origins)
        evaluated += new
        if new:
            _interpolate(image, spacing)
            yield Pass(image.permute(1, 2, 0), spacing, new, evaluated, total)
        spacing //= 2


def _evaluate_lattice(evaluate: Evaluator, image: Tensor, origin: tuple[int, int], step: int, chunk: int) -> int:
    """Compute the pixels of an image [3, H, W] at every step-th row and column from an origin on; how many."""
    target = image[:, origin[0] :: step, origin[1] :: step]
    columns = target.shape[2]
    count = target[0].numel()
    for start in range(0, count, chunk):
        index = torch.arange(start, min(start + chunk, count), device=image.device)
        row, column = index // columns, index % columns
        colours = check_colours(evaluate(origin[0] + step * row, origin[1] + step * column), len(index))
        target[:, row, column] = colours.T.to(image)
    return count


def _interpolate(image: Tensor, spacing: int) -> None:
    """Fill an image [3, H, W] from the pixels at multiples of the spacing."""
    while spacing > 1:
        for plane in image.split(1):  # a colour at a time, which takes less memory
            lattice.fill_centres(plane, spacing)
            lattice.fill_edges(plane, spacing)
        spacing //= 2

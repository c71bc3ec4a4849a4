"""Cubic interpolation on nested square lattices, in place: from the pixels at multiples of s to those of s/2.

A lattice of spacing s is refined in two stages. The first fills the centres of its cells. Together with the lattice,
the centres form a square lattice that is rotated by 45°; the second stage fills the centres of its cells, which are the
middles of the first lattice's edges. Both stages are exact on cubic polynomials. Beyond the image's border, the nearest
pixel is repeated.
"""

import torch
from torch import Tensor

ROWS, COLUMNS = 1, 2  # dimensions of [C, H, W]


def fill_centres(image: Tensor, spacing: int) -> None:
    """Set the pixels at odd multiples of spacing/2 in both directions from those at multiples of spacing.

    The four-point rule (-1, 9, 9, -1)/16 (Deslauriers and Dubuc, 1989) along columns, then along rows.

    Args:
        image: [C, H, W], changed in place.
        spacing: pixels, even.
    """
    half = spacing // 2
    centres = image[:, half::spacing, half::spacing]
    if centres.numel():
        between_rows = _between(image[:, ::spacing, ::spacing], ROWS, centres.shape[ROWS])
        centres.copy_(_between(between_rows, COLUMNS, centres.shape[COLUMNS]))


def fill_edges(image: Tensor, spacing: int) -> None:
    """Set the middles of the edges between the pixels at multiples of spacing. The centres of the cells must be set.

    Of the twelve nearest pixels on the rotated lattice, the four nearest count 10/32 each, and the eight behind them
    -1/32 each: the two-dimensional Neville rule of order 4 (Kovačević and Sweldens, 2000).

    Args:
        image: [C, H, W], changed in place.
        spacing: pixels, even.
    """
    half = spacing // 2
    corners = image[:, ::spacing, ::spacing]
    centres = image[:, half::spacing, half::spacing]
    _fill_edges_along(ROWS, corners, centres, image[:, half::spacing, ::spacing])
    _fill_edges_along(COLUMNS, corners, centres, image[:, ::spacing, half::spacing])


def _fill_edges_along(along: int, corners: Tensor, centres: Tensor, middles: Tensor) -> None:
    """Set the middles [C, h, w] of the edges that run along a dimension between corners, across it between centres."""
    if not middles.numel():
        return
    if not centres.numel():  # a single row or column of corners
        middles.copy_(_between(corners, along, middles.shape[along]))
        return
    across = ROWS + COLUMNS - along
    of_corners = _pair_sums(_repeated(corners, along, 0, middles.shape[along] + 1 - corners.shape[along]), along)
    of_centres = _pair_sums(_repeated(centres, across, 1, middles.shape[across] - centres.shape[across]), across)
    torch.add(of_corners, of_centres, out=middles).mul_(10 / 32)
    for sums, dim in ((of_corners, across), (of_centres, along)):
        sums = _repeated(sums, dim, 1, 1)
        size = middles.shape[dim]
        middles.sub_(sums.narrow(dim, 0, size), alpha=1 / 32).sub_(sums.narrow(dim, 2, size), alpha=1 / 32)


def _between(values: Tensor, dim: int, count: int) -> Tensor:
    """The middle between each of the first `count` values of a dimension and the next, by the four-point rule."""
    values = _repeated(values, dim, 1, count + 2 - values.shape[dim])
    far, near = (values.narrow(dim, start, count) for start in (0, 1))
    near = near + values.narrow(dim, 2, count)
    far = far + values.narrow(dim, 3, count)
    return near.mul_(9 / 16).sub_(far, alpha=1 / 16)


def _pair_sums(values: Tensor, dim: int) -> Tensor:
    size = values.shape[dim] - 1
    return values.narrow(dim, 0, size) + values.narrow(dim, 1, size)


def _repeated(values: Tensor, dim: int, before: int, after: int) -> Tensor:
    """A tensor with the first slice of a dimension repeated before it and the last one after it."""
    first, last = (values.narrow(dim, index, 1) for index in (0, values.shape[dim] - 1))
    parts = [first] * before + [values] + [last] * after
    return torch.cat(parts, dim) if len(parts) > 1 else values

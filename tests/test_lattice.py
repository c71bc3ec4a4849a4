"""Interpolation on nested lattices: exact on cubic polynomials, and everywhere at borders and in lines."""

import pytest
import torch

from cips_fast import lattice

from .scenes import cubic


def refined(image, spacing):
    """From the pixels at multiples of the spacing, everything else having been forgotten: [C, H, W]."""
    result = torch.full_like(image, float("nan"))
    result[:, ::spacing, ::spacing] = image[:, ::spacing, ::spacing]
    while spacing > 1:
        lattice.fill_centres(result, spacing)
        lattice.fill_edges(result, spacing)
        spacing //= 2
    return result


@pytest.mark.parametrize("spacing", [2, 4, 8])
def test_cubic_polynomials_are_exact(spacing):
    image = cubic(71, 90).permute(2, 0, 1)
    margin = 5 * spacing
    inside = (slice(None), slice(margin, -margin), slice(margin, -margin))
    torch.testing.assert_close(refined(image, spacing)[inside], image[inside], rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (1, 70), (2, 3), (5, 4), (17, 16), (65, 2)], ids=str)
@pytest.mark.parametrize("spacing", [1, 2, 16, 64])
def test_every_pixel_is_filled_and_known_ones_stay(size, spacing):
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    result = refined(image, spacing)
    known = (slice(None), slice(None, None, spacing), slice(None, None, spacing))
    assert torch.equal(result[known], image[known])
    # The rules' negative weights let values leave [0, 1] by little.
    assert bool(((result > -0.5) & (result < 1.5)).all())
    torch.testing.assert_close(refined(torch.full_like(image, 0.3), spacing), torch.full_like(image, 0.3))


def test_rows_and_columns_are_treated_alike():
    image = torch.rand(2, 21, 34, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        refined(image, 4), refined(image.transpose(1, 2).contiguous(), 4).transpose(1, 2), rtol=0, atol=1e-14
    )


def test_a_pixel_reaches_its_nearest_and_second_nearest_edges_and_no_further():
    image = torch.zeros(1, 24, 24)
    image[0, 12, 12] = 32
    lattice.fill_edges(image, 4)
    wanted = torch.zeros(24, 24)
    wanted[12, 12] = 32
    for near, far in ((2, 4), (-2, 4), (2, -4), (-2, -4)):
        wanted[12 + near, 12] = wanted[12, 12 + near] = 10
        wanted[12 + near, 12 + far] = wanted[12 + far, 12 + near] = -1
    assert torch.equal(image[0], wanted)

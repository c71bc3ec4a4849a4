"""Foveated rendering: which pixels are computed, and what becomes of the others."""

import math

import pytest
import torch

from cips_fast.foveation import Foveated, cortical, foveate, reconstruct, sample_pixels

from .scenes import by_index, cubic, landscape, psnr, renderer


def uniform(radius):
    return torch.ones_like(radius)


def white_noise(height, width, count, falloff, seed=0):
    """Pixels drawn one by one with the same densities, none twice."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    density = falloff(torch.hypot(x, y) / (max(height, width) / 2)).flatten()
    drawn = density / (1 - torch.rand(len(density), generator=torch.Generator().manual_seed(seed)))
    return drawn.topk(count).indices.sort().values


def picked(image, pixels):
    return image.flatten(0, 1)[pixels]


def rebuilt(image, pixels):
    return reconstruct(*image.shape[:2], pixels, picked(image, pixels))


def test_the_rendered_image_is_the_renderer_s_where_it_was_computed():
    scene = renderer(96, 130)
    full = scene.image().permute(1, 2, 0)
    result = foveate(scene.pixels, 96, 130, (0.5, -0.2), 0.2, chunk=1000)
    assert result.image.shape == (96, 130, 3)
    assert int(result.evaluated.sum()) == round(0.2 * 96 * 130)
    assert torch.equal(result.image[result.evaluated], full[result.evaluated])
    error = result.error(full)
    assert error.gaze_psnr > error.psnr + 10 > error.periphery_psnr + 10
    assert error.psnr > 25


def test_every_pixel_is_asked_for_once_and_no_more_than_a_chunk():
    asked = []
    result = foveate(by_index(50, 70, asked), 50, 70, budget=0.3, chunk=100)
    assert max(len(index) for index in asked) == 100
    assert torch.equal(torch.cat(asked), sample_pixels(50, 70, budget=0.3))
    assert torch.equal(result.evaluated.flatten().nonzero()[:, 0], torch.cat(asked))


@pytest.mark.parametrize("budget", [0.001, 0.03, 0.1, 0.5, 0.99, 1])
@pytest.mark.parametrize("size", [(128, 128), (77, 301), (1, 1000), (5000, 3)], ids=str)
@pytest.mark.parametrize("gaze", [(0, 0), (1, -0.7)], ids=str)
def test_just_the_budget(size, gaze, budget):
    pixels = sample_pixels(*size, gaze, budget, seed=1)
    assert pixels.dtype == torch.int64
    assert len(pixels) == round(budget * math.prod(size))
    assert bool((pixels.diff() > 0).all())
    assert 0 <= pixels[0] <= pixels[-1] < math.prod(size)


def test_a_very_wide_image():
    assert len(sample_pixels(600, 1 << 14, budget=0.01)) == round(0.01 * 600 * (1 << 14))


def test_the_share_of_computed_pixels_follows_the_falloff():
    gaze, size = (0.25, -0.5), 512
    mask = torch.zeros(size * size)
    mask[sample_pixels(size, size, gaze, 0.1, falloff=cortical(0.1))] = 1
    place = torch.linspace(-1, 1, size)
    radius = torch.hypot(place - gaze[0], (place - gaze[1])[:, None]) * (size - 1) / size
    density = cortical(0.1)(radius)
    ring = (radius * 20).long()
    share = torch.stack([mask.view(size, size)[ring == number].mean() for number in range(28)])
    mean = torch.stack([density[ring == number].mean() for number in range(28)])
    assert bool((share[:2] == 1).all())
    scale = 0.1 * size**2 / density.clamp_max(float(mean[2])).sum()  # the rings within ring 2 are full
    thin = share < 0.9
    assert int(thin.sum()) >= 24
    ratio = share[thin] / (scale * mean[thin])
    assert float(ratio.max() / ratio.min()) < 1.25


@pytest.mark.parametrize(("share", "step"), [(1 / 4, 2), (1 / 16, 4), (1 / 64, 8)])
def test_even_densities_are_lattices(share, step):
    mask = torch.zeros(64, 96, dtype=torch.bool)
    mask.view(-1)[sample_pixels(64, 96, budget=share, falloff=uniform)] = True
    lattice = torch.zeros_like(mask)
    lattice[::step, ::step] = True
    assert torch.equal(mask, lattice)
    lattice[step // 2 :: step, step // 2 :: step] = True
    mask.view(-1)[sample_pixels(64, 96, budget=2 * share, falloff=uniform)] = True
    assert torch.equal(mask, lattice)


def test_a_larger_budget_only_adds_pixels():
    small, large = (sample_pixels(90, 70, (0.3, 0), budget, seed=4) for budget in (0.05, 0.2))
    assert bool(torch.isin(small, large).all())


def test_of_equally_wanted_pixels_the_first_are_taken():
    pixels = sample_pixels(40, 40, (0, 1), 0.5, falloff=lambda radius: (radius < 0.25).float())
    assert len(pixels) == 800
    unwanted = pixels[pixels < 34 * 40]  # all the wanted ones lie in the last five rows
    assert torch.equal(unwanted, torch.arange(len(unwanted)))


def test_the_same_seed_gives_the_same_pixels_and_another_others():
    first, again, other = (sample_pixels(100, 100, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dithered_lattices_are_better_than_white_noise(seed):
    image = landscape(256, 256)
    dithered = psnr(rebuilt(image, sample_pixels(256, 256, seed=seed)), image)
    white = psnr(rebuilt(image, white_noise(256, 256, round(0.1 * 256**2), cortical(), seed)), image)
    assert dithered > white + 2


def test_interpolation_is_better_than_the_nearest_pixel():
    image = landscape(128, 160)
    pixels = sample_pixels(128, 160)
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(160.0), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1)
    nearest = picked(image, pixels)[torch.cdist(places, places[pixels]).argmin(1)].view_as(image)
    assert psnr(rebuilt(image, pixels), image) > psnr(nearest, image) + 3


def test_the_gaze_s_surroundings_are_better_than_without_a_gaze():
    image = landscape(256, 256)
    gaze = (-0.4, -0.2)  # the sun's lower edge
    results = [
        foveate(lambda rows, columns: image[rows, columns], 256, 256, gaze, falloff=falloff).error(image)
        for falloff in (None, uniform)
    ]
    assert results[0].gaze_psnr > results[1].gaze_psnr + 10
    assert results[0].psnr < results[1].psnr


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_cubic_polynomials_are_exact_between_lattices(seed):
    image = cubic(200, 260)
    pixels = sample_pixels(200, 260, budget=1 / 16, falloff=uniform, seed=seed)
    inside = (slice(60, -60), slice(60, -60))
    torch.testing.assert_close(rebuilt(image, pixels)[inside], image[inside], rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 50, 1500, 50 * 31])
def test_any_set_of_pixels(count):
    image = landscape(50, 31)
    pixels = torch.randperm(50 * 31, generator=torch.Generator().manual_seed(count))[:count]
    result = rebuilt(image, pixels)
    assert torch.equal(picked(result, pixels), picked(image, pixels))
    assert bool(result.isfinite().all())
    if count == 1:
        torch.testing.assert_close(result, picked(image, pixels).expand(50, 31, 3))


def test_a_slope_between_scattered_pixels_is_not_moved():
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    slopes = torch.stack([x, y, x - y], -1)
    error = (rebuilt(slopes, white_noise(256, 256, 6500, uniform)) - slopes)[20:-20, 20:-20]
    assert float(error.mean((0, 1)).abs().max()) < 0.05
    assert float(error.std()) < 1


def test_pixels_of_one_corner_give_the_other():
    result = reconstruct(1000, 700, torch.tensor([700 * 1000 - 1]), torch.tensor([[0.5, -0.25, 1]]))
    torch.testing.assert_close(result, torch.tensor([0.5, -0.25, 1]).expand(1000, 700, 3))


def test_error_of_known_differences():
    evaluated = torch.zeros(21, 41, dtype=torch.bool)
    image = torch.zeros(21, 41, 3)
    full = image.clone()
    full[:, 31:] = 0.1  # from 10.5 to 20.5 pixels right of the gaze
    error = Foveated(image, evaluated, (0.0, 0.0)).error(full, gaze_radius=0.5)
    assert (error.gaze_psnr, error.gaze_rmse) == (math.inf, 0)
    assert error.rmse == pytest.approx(0.1 * math.sqrt(10 / 41))
    assert error.psnr == pytest.approx(20 * math.log10(2 / error.rmse))
    inside = sum(math.hypot(x, y) <= 0.5 * 20.5 for x in range(-20, 21) for y in range(-10, 11))
    assert error.periphery_rmse == pytest.approx(0.1 * math.sqrt(210 / (21 * 41 - inside)))
    assert math.isnan(Foveated(image, evaluated, (0.0, 0.0)).error(full, gaze_radius=2).periphery_psnr)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sample_pixels(0, 4), "height: got 0"),
        (lambda: sample_pixels(4, -1), "width: got -1"),
        (lambda: sample_pixels(4, 4, (0, 1.5)), r"gaze: got \(0, 1.5\)"),
        (lambda: sample_pixels(4, 4, (math.nan, 0)), "gaze: got"),
        (lambda: sample_pixels(4, 4, budget=0), "budget: got 0"),
        (lambda: sample_pixels(4, 4, budget=1.1), "budget: got 1.1"),
        (lambda: sample_pixels(4, 4, budget=0.03), "less than one pixel"),
        (lambda: sample_pixels(4, 4, falloff=lambda radius: -radius), "falloff: it gave"),
        (lambda: sample_pixels(4, 4, falloff=lambda radius: radius.sum()), r"falloff: it gave .* of shape \[4, 4\]"),
        (lambda: cortical(0), "half_resolution: got 0"),
        (lambda: foveate(by_index(4, 4), 4, 4, chunk=0), "chunk: got 0"),
        (
            lambda: foveate(lambda rows, columns: torch.zeros(3, len(rows)), 8, 8),
            r"evaluate: it returned shape \[3, 6\]",
        ),
        (lambda: reconstruct(2, 2, torch.tensor([]), torch.zeros(0, 3)), r"pixels: got shape \[0\]"),
        (lambda: reconstruct(2, 2, torch.tensor([4]), torch.zeros(1, 3)), "pixels: got 4 to 4, must be 0 to 3"),
        (lambda: reconstruct(2, 2, torch.tensor([1]), torch.zeros(3, 1)), r"must be floating-point of shape \[1, 3\]"),
        (lambda: reconstruct(2, 2, torch.tensor([1]), torch.zeros(1, 3).long()), "colours: got torch.int64"),
        (
            lambda: foveate(by_index(4, 4), 4, 4, budget=0.5).error(torch.zeros(3, 4, 4)),
            r"full: got shape \[3, 4, 4\]",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()

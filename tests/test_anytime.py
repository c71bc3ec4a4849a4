"""Progressive rendering: every pixel once, a whole image after every pass, the full one after the last."""

from itertools import pairwise

import pytest
import torch

from cips_fast.anytime import progressive

from .scenes import by_index, landscape, psnr, renderer

SIZES = [(1, 1), (1, 70), (70, 1), (5, 9), (64, 64), (65, 129), (63, 100)]


def test_the_last_pass_is_the_renderer_s_image_bit_for_bit():
    scene = renderer(90, 131)
    for one in progressive(scene.pixels, 90, 131, coarsest=16, chunk=777):
        assert one.image.shape == (90, 131, 3)
    assert (one.spacing, one.evaluated) == (1, one.total)
    assert torch.equal(one.image, scene.image().permute(1, 2, 0))


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("chunk", [7, 1 << 16])
@pytest.mark.parametrize("coarsest", [1, 8, 64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_pixel_is_asked_for_once(size, coarsest, chunk):
    height, width = size
    asked = []
    full = by_index(*size)(*(index.flatten() for index in torch.meshgrid(*map(torch.arange, size), indexing="ij")))
    full = full.view(height, width, 3)
    evaluated = 0
    for one in progressive(by_index(*size, asked), *size, coarsest=coarsest, chunk=chunk):
        lattice = (slice(None, None, one.spacing), slice(None, None, one.spacing))
        assert torch.equal(one.image[lattice], full[lattice])
        assert bool(one.image.isfinite().all())
        evaluated += one.new
        assert one.new > 0
        assert one.evaluated == evaluated == full[lattice][..., 0].numel() == sum(map(len, asked))
        assert one.total == height * width
    assert torch.equal(torch.cat(asked).sort().values, torch.arange(height * width))
    assert max(map(len, asked)) <= chunk
    assert torch.equal(one.image, full)


def test_passes_halve_the_spacing_and_only_as_many_as_are_asked_for_are_computed():
    asked = []
    passes = progressive(by_index(100, 100, asked), 100, 100, coarsest=32)
    assert asked == []
    assert [next(passes).spacing for _ in range(3)] == [32, 16, 8]
    assert sum(map(len, asked)) == 13 * 13
    assert [one.spacing for one in passes] == [4, 2, 1]


def test_passes_that_would_compute_nothing_are_left_out():
    passes = [(one.spacing, one.new) for one in progressive(by_index(5, 9), 5, 9, coarsest=64)]
    assert passes == [(64, 1), (8, 1), (4, 4), (2, 9), (1, 30)]


def test_every_pass_is_closer_to_the_image_and_none_blocky():
    image = landscape(200, 256)
    quality, blocks = [], []
    for one in progressive(lambda rows, columns: image[rows, columns], 200, 256, coarsest=32):
        quality.append(psnr(one.image, image))
        nearest = image[:: one.spacing, :: one.spacing]
        nearest = nearest.repeat_interleave(one.spacing, 0).repeat_interleave(one.spacing, 1)
        blocks.append(psnr(nearest[:200, :256], image))
    assert quality[-1] == float("inf")
    assert all(later > earlier + 3 for earlier, later in pairwise(quality))
    assert all(ours > theirs + 2 for ours, theirs in zip(quality[:-1], blocks[:-1], strict=True))


def test_all_passes_share_one_image():
    places = {one.image.data_ptr() for one in progressive(by_index(50, 50), 50, 50)}
    assert len(places) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"height": 0}, "height: got 0"),
        ({"width": 0}, "width: got 0"),
        ({"coarsest": 0}, "coarsest: got 0"),
        ({"coarsest": 48}, "coarsest: got 48, must be a power of two"),
        ({"chunk": 0}, "chunk: got 0"),
    ],
    ids=str,
)
def test_bad_input_is_named_before_anything_is_computed(options, words):
    with pytest.raises(ValueError, match=words):
        progressive(**{"evaluate": by_index(4, 4), "height": 4, "width": 4} | options)


def test_colours_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"evaluate: it returned shape \[4\], must be \[4, 3\]"):
        next(progressive(lambda rows, columns: rows.float(), 4, 4, coarsest=2))

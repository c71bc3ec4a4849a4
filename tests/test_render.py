"""Rendering in pieces: any piece is bit for bit what the whole image has there."""

import warnings

import pytest
import torch

from cips_fast import CIPSGenerator, grids, panorama, render, repeats

GENERATORS = {
    "plane": {},
    "cylinder": {"geometry": "cylinder"},
    "res": {"variant": "res", "width": [24, 24, 16]},
    "published": {"width": "published", "size": 8, "align_corners": False},
    "counted": {"integer_coords": True, "align_corners": False},
    "sines": {"activation": "sin"},
}
PIECES = [(0, 1, 0, 1), (3, 50, 7, 9), (99, 100, 0, 203), (0, 100, 100, 101), (5, 70, 3, 199)]


def generator_of(kind):
    torch.manual_seed(0)
    options = {"size": 16, "width": 32, "embedding_size": 8, "style_features": 16} | GENERATORS[kind]
    return CIPSGenerator(**options).eval().requires_grad_(False)


def latent(generator, seed=0):
    return generator.mapping(torch.randn(1, 16, generator=torch.Generator().manual_seed(seed)))[0]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", GENERATORS)
def test_pieces_are_bit_for_bit_those_of_the_whole(kind, threads, monkeypatch):
    monkeypatch.setattr(render, "CHUNK_PIXELS", 1 << 12)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = generator_of(kind)
        renderer = render.Renderer(generator, latent(generator), 100, 203)
        whole = renderer.image()
        for top, bottom, left, right in PIECES:
            rows, columns = slice(top, bottom), slice(left, right)
            assert torch.equal(renderer.tile(rows, columns), whole[:, rows, columns])
        rng = torch.Generator().manual_seed(1)
        for count in (1, 15, 64, 777):
            rows, columns = (torch.randint(side, (count,), generator=rng) for side in (100, 203))
            assert torch.equal(renderer.pixels(rows, columns), whole[:, rows, columns].T)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["plane", "counted", "cylinder"])
def test_the_native_grid_is_the_generator_s_own_image(kind):
    generator = generator_of(kind)
    w = latent(generator)
    wanted = generator.synthesis(w[None], generator.native_grid()[None])[0]
    torch.testing.assert_close(render.image(generator, w, *wanted.shape[1:]), wanted, rtol=0, atol=2e-5)


def test_a_region_is_a_part_of_a_larger_image():
    generator = generator_of("plane")
    w = latent(generator)
    whole = render.image(generator, w, 65, 65)
    torch.testing.assert_close(
        render.image(generator, w, 33, 17, (0, -1, 0.5, 0)), whole[:, :33, 32:49], rtol=0, atol=2e-5
    )


def test_a_panorama_has_no_seam():
    generator = generator_of("cylinder")
    w = latent(generator)
    edges = torch.stack([torch.tensor([-1.0, 1.0]).repeat(50), torch.linspace(-1, 1, 50).repeat_interleave(2)], -1)
    left, right = generator.synthesis(w[None], edges)[0].view(50, 2, 3).unbind(1)
    assert torch.equal(left, right)
    turned = render.image(generator, w, 20, 60, (0, -1, 2, 1))
    assert torch.equal(turned.roll(30, 2), render.image(generator, w, 20, 60))
    close = render.image(generator, w, 20, 2, (1 - 1e-4, -1, 1 + 1e-4, 1))
    assert (close[..., 0] - close[..., 1]).abs().max() < 1e-2


def test_the_embedding_of_a_cylinder_wraps():
    """Half a cell beyond the last column lies the mean of the last and the first."""
    encoding = generator_of("cylinder").encoding
    columns = encoding.embedding.shape[1]
    assert columns == 2 * encoding.embedding.shape[0]
    at = torch.tensor([[1 - 1 / columns, -1.0]])
    read = encoding(at[None])[0, 0, encoding.freq.shape[0] :]
    torch.testing.assert_close(read, encoding.embedding[0, [-1, 0]].mean(0))


def test_gradients_of_a_cylinder_are_the_reference_s():
    gradients = []
    for backend in ("cpu", "reference"):
        generator = generator_of("cylinder").requires_grad_(True)
        generator.backend = backend
        image = generator.synthesis(latent(generator)[None], grids.cylinder(9, 18)[None])
        gradients.append(torch.autograd.grad(image.square().mean(), list(generator.encoding.parameters())))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["plane", "cylinder", "published"])
def test_a_bicubic_embedding(kind):
    """Finer cells pass through the old ones, and between them like PyTorch's own bicubic resampling."""
    generator = generator_of(kind)
    finer = render.with_bicubic_embedding(generator, 4)
    old, new = generator.encoding.embedding, finer.encoding.embedding
    if kind == "published":  # cells have edges: their centres move
        assert new.shape[:2] == (32, 32)
    else:
        assert torch.equal(new[::4, ::4], old)
    wrapped = torch.cat([old[:, -2:], old, old[:, :3]], 1)[None, :1].permute(0, 3, 1, 2)
    if kind == "cylinder":
        assert new.shape[:2] == (29, 64)
        between = torch.nn.functional.interpolate(wrapped, (1, 81), mode="bicubic", align_corners=True)
        torch.testing.assert_close(new[:1], between[0].permute(1, 2, 0)[:, 8:72])
    image = render.image(finer, latent(generator), 20, 30)
    assert image.isfinite().all()
    assert not torch.equal(image, render.image(generator, latent(generator), 20, 30))
    assert generator.encoding.embedding.shape[0] == 8


def test_a_latent_is_that_of_one_picture():
    generator = generator_of("plane")
    w = generator.mapping(torch.randn(1, 16))
    per_layer = torch.randn(1, generator.num_layers, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(render.image(generator, w, 4, 4), render.image(generator, w[0], 4, 4))
        wanted = render.image(generator, per_layer, 4, 4)
    with pytest.warns(UserWarning, match=r"w: \[7, 16\] is read as one latent a layer"):
        assert torch.equal(render.image(generator, per_layer[0], 4, 4), wanted)


def test_tiles_cover_an_image_once():
    seen = torch.zeros(10, 7)
    for rows, columns in render.tiles(10, 7, 4):
        seen[rows, columns] += 1
    assert (seen == 1).all()


def test_what_was_never_trained_is_rendered_with_a_warning():
    generator = generator_of("plane")
    with pytest.warns(UserWarning, match=r"region: \(-2, -1, 1, 1\) goes beyond the trained"):
        assert render.image(generator, latent(generator), 4, 4, (-2, -1, 1, 1)).isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render.image(generator_of("cylinder"), latent(generator), 4, 4, (-2, -1, 3, 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"height": 0}, "height: got 0, must be at least 1"),
        ({"width": -3}, "width: got -3, must be at least 1"),
        ({"w": torch.zeros(3, 16)}, r"w: got shape \[3, 16\], must be \[16\], \[1, 16\] or \[1, 7, 16\]: give one"),
        ({"w": torch.zeros(2, 7, 16)}, r"w: got shape \[2, 7, 16\], .*: give one picture's latent, w\[i\]"),
        ({"w": torch.zeros(17)}, r"w: got shape \[17\], must be \[16\], \[1, 16\] or \[1, 7, 16\]$"),
        ({"region": (0, 0, 0, 1)}, r"region: got \(0, 0, 0, 1\)"),
        ({"region": (0, 0, float("nan"), 1)}, "region: got"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(ValueError, match=words):
        render.Renderer(generator_of("plane"), **{"w": torch.zeros(16), "height": 4, "width": 4} | arguments)


def test_a_cylinder_takes_no_counted_or_edged_grid():
    with pytest.raises(ValueError, match="integer_coords: got True, must be False on a cylinder"):
        CIPSGenerator(8, width=8, geometry="cylinder", integer_coords=True)
    with pytest.raises(ValueError, match="align_corners: got False, must be True on a cylinder"):
        CIPSGenerator(8, width=8, geometry="cylinder", align_corners=False)


def test_a_panorama_of_plane_latents_closes_and_shows_each_of_them():
    generator = generator_of("plane")
    w = torch.stack([latent(generator, seed) for seed in range(4)])
    picture = panorama.Panorama(generator, w, 16, 4 * 32)
    whole = picture.image()
    assert repeats.seam(picture, 0, 4).gap == 0
    for j in range(4):  # the middle of a part is a latent's own, at x = 0
        column = picture.tile(slice(None), slice(32 * j + 16, 32 * j + 17))[..., 0]
        own = render.Renderer(generator, w[j], 16, 3).tile(slice(None), slice(1, 2))[..., 0]
        torch.testing.assert_close(column, own, rtol=0, atol=2e-5)
    assert torch.equal(picture.tile(slice(2, 9), slice(30, 99)), whole[:, 2:9, 30:99])
    steps = (whole - whole.roll(1, 2)).abs().amax((0, 1))  # from every column to the one after it, round the circle
    assert steps[0] <= steps[1:].max()


def test_a_seam_is_found_where_there_is_one():
    generator = generator_of("plane")
    w = latent(generator)
    plane = render.Renderer(generator, w, 16, 64)
    open_ends = repeats.seam(plane, -1, 1)
    before, step, behind = plane.image()[..., [-2, -1, 0, 1]].diff(dim=-1).abs().mean((0, 1)).tolist()
    assert open_ends.gap > 0.1
    assert open_ends.step == pytest.approx(step, rel=1e-4)
    assert open_ends.beside == pytest.approx((before + behind) / 2, rel=1e-4)
    assert open_ends.step > 3 * open_ends.beside
    closed = repeats.seam(panorama.Panorama(generator, torch.stack([w, -w]), 16, 64), 0, 2)
    assert closed.gap == 0
    assert closed.step < 2 * closed.beside


def test_a_seam_is_found_where_an_odd_number_of_parts_is_closed():
    """Its last part ends at x = 1, and the first begins at x = -1: what no `Panorama` takes."""
    generator = generator_of("plane")
    w = torch.stack([latent(generator, seed) for seed in range(3)])
    torn = panorama.Panorama(generator, w[:2], 16, 64)
    torn.w, torn.x = w, torn.x * 1.5
    assert repeats.seam(torn, 0, 3).gap > 0.1


@pytest.mark.parametrize(
    ("kind", "latents", "words"),
    [
        ("plane", 3, "w: got 3 latents, must be an even number of at least 2"),
        ("plane", 0, "w: got 0 latents"),
        ("cylinder", 2, "generator: got geometry 'cylinder', must be 'plane'"),
    ],
)
def test_a_panorama_that_cannot_close(kind, latents, words):
    with pytest.raises(ValueError, match=words):
        panorama.Panorama(generator_of(kind), torch.randn(latents, 16), 8, 8)

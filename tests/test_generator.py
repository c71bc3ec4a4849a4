"""CIPSGenerator: counts, shapes of coordinates, independence of pixels, latents, checkpoints of our own."""

import json

import numpy as np
import pytest
import torch

from cips_fast import CIPSGenerator, FourierEncoding, Mapping, ModFC, ToRGB, checkpoint, grids


@pytest.fixture(params=["skip", "res"])
def generator(request):
    return small(variant=request.param)


def small(**options):
    torch.manual_seed(0)
    made = CIPSGenerator(16, **({"width": (24, 16, 12), "style_features": 20, "mapping_layers": 2} | options)).eval()
    for parameter in made.parameters():  # biases start at zero and would hide a mistake
        if parameter.requires_grad and parameter.dim() == 1:
            torch.nn.init.normal_(parameter, parameter.mean().item(), 0.3)
    return made


def latents(generator, batch, seed=1):
    return torch.randn(batch, generator.style_features, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("width", "count"), [(512, 45_911_076), ("published", 44_317_092)])
def test_parameter_counts_of_the_paper(width, count):
    with torch.device("meta"):
        generator = CIPSGenerator(size=256, width=width)
    assert sum(p.numel() for p in generator.parameters()) == count
    assert len([m for m in generator.modules() if isinstance(m, ModFC)]) == generator.num_layers == 15
    assert len(generator.to_rgb) == 7


def test_forward_is_the_native_grid(generator):
    z = latents(generator, 3)
    image = generator(z)
    assert image.shape == (3, 3, 16, 16)
    torch.testing.assert_close(image, generator.synthesis(generator.mapping(z), grids.plane(16, 16)))


def test_coordinates_of_every_shape_agree(generator):
    w = generator.mapping(latents(generator, 2))
    grid = grids.plane(5, 9)  # [H, W, D]
    image = generator.synthesis(w, grid)
    assert image.shape == (2, 3, 5, 9)
    wanted = image.flatten(2).mT  # [B, P, 3]
    points = grid.flatten(0, 1)
    torch.testing.assert_close(generator.synthesis(w, points), wanted)
    torch.testing.assert_close(generator.synthesis(w, points.expand(2, -1, -1)), wanted)
    torch.testing.assert_close(generator.synthesis(w, grid[None]), image)
    torch.testing.assert_close(generator.synthesis(w, grid.expand(2, -1, -1, -1)), image)


def test_each_latent_may_have_its_own_coordinates(generator):
    w = generator.mapping(latents(generator, 2))
    points = torch.rand(2, 11, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1
    both = generator.synthesis(w, points)
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], generator.synthesis(w[i : i + 1], points[i]))


def test_a_pixel_depends_on_its_own_coordinate_alone(generator):
    w = generator.mapping(latents(generator, 1))
    rng = torch.Generator().manual_seed(3)
    points = torch.rand(101, 2, generator=rng) * 2 - 1
    colours = generator.synthesis(w, points)
    order = torch.randperm(101, generator=rng)
    torch.testing.assert_close(generator.synthesis(w, points[order]), colours[:, order], rtol=1e-5, atol=1e-6)
    parts = torch.cat([generator.synthesis(w, part) for part in points.split([1, 37, 63])], 1)
    torch.testing.assert_close(parts, colours, rtol=1e-5, atol=1e-6)
    twice = generator.synthesis(w, points.repeat_interleave(2, 0))
    torch.testing.assert_close(twice[:, ::2], colours, rtol=1e-5, atol=1e-6)
    moved = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(generator.synthesis(w, moved)[:, 40].sum(), moved)
    assert gradient[40].abs().sum() > 0
    assert gradient[torch.arange(101) != 40].abs().sum() == 0


def test_grid_whose_height_may_be_the_batch_is_warned_about():
    generator = small()
    w = generator.mapping(latents(generator, 4))
    with pytest.warns(UserWarning, match=r"read as \[B, P, D\]"):
        assert generator.synthesis(w, grids.plane(4, 4)).shape == (4, 4, 3)
    assert generator.synthesis(w, grids.plane(4, 4)[None]).shape == (4, 3, 4, 4)


@pytest.mark.parametrize("activation", ["lrelu", "sin", "sinrelu"])
def test_backends_give_the_same_image_and_gradients(generator, activation):
    made = {b: small(variant=generator.variant, activation=activation, backend=b) for b in ("cpu", "reference")}
    w = generator.mapping(latents(generator, 2)).detach()
    grads = {}
    for backend, g in made.items():
        image = g.synthesis(w, grids.plane(6, 5))
        upstream = torch.randn(image.shape, generator=torch.Generator().manual_seed(4))
        grads[backend] = [image, *torch.autograd.grad(image, [*g.layers.parameters(), g.encoding.embedding], upstream)]
    for ours, plain in zip(grads["cpu"], grads["reference"], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 * plain.abs().max().item())


def test_second_derivatives_through_the_reference_backend():
    generator = small(width=(4, 4, 4), style_features=3, mapping_layers=1, backend="reference").double()
    points = torch.tensor([[0.1, -0.3], [0.5, 0.2]], dtype=torch.float64)
    w = latents(generator, 1).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: generator.synthesis(v, points), (w,))


def test_per_layer_latents_and_mixing(generator):
    w, other = generator.mapping(latents(generator, 2)), generator.mapping(latents(generator, 2, seed=9))
    grid = grids.plane(4, 7)
    image = generator.synthesis(w, grid)
    layers = generator.num_layers
    torch.testing.assert_close(generator.synthesis(w[:, None].expand(-1, layers, -1), grid), image)
    torch.testing.assert_close(generator.synthesis(generator.mix(w, other, layers), grid), image)
    torch.testing.assert_close(generator.synthesis(generator.mix(w, other, 0), grid), generator.synthesis(other, grid))
    mixed = generator.synthesis(generator.mix(w, other, layers // 2), grid)
    assert (mixed - image).abs().max() > 1e-3
    with pytest.raises(ValueError, match=f"crossover: got {layers + 1}, must be 0 to {layers}"):
        generator.mix(w, other, layers + 1)


def test_truncation_pulls_to_the_tracked_mean(generator):
    z = latents(generator, 2000)
    for _ in range(3000):
        generator.track_mean_latent(generator.mapping(z))
    torch.testing.assert_close(generator.mean_latent, generator.mapping(z).mean(0), rtol=0, atol=0.02)
    mean_image = generator.synthesis(generator.mean_latent[None], generator.native_grid()[None])
    torch.testing.assert_close(generator(z[:1], truncation=0.0), mean_image)
    torch.testing.assert_close(generator(z[:1], truncation=1.0), generator(z[:1]))
    w = generator.mapping(z[:1])
    half = generator.mean_latent + 0.5 * (w - generator.mean_latent)
    grid = grids.plane(3, 5)
    torch.testing.assert_close(generator(z[:1], grid, truncation=0.5), generator.synthesis(half, grid))


def test_noise_is_off_unless_asked_for():
    quiet, noisy = small(), small(noise=True)
    z = latents(quiet, 1)
    assert torch.equal(quiet(z), quiet(z))
    torch.testing.assert_close(noisy(z), quiet(z))  # of strength zero
    noisy.noise_strength.data.fill_(0.5)
    torch.manual_seed(0)
    first = noisy(z)
    assert (first - noisy(z)).abs().max() > 1e-3
    torch.manual_seed(0)
    assert torch.equal(first, noisy(z))


def test_modfc_keeps_leading_dimensions():
    torch.manual_seed(0)
    layer = ModFC(6, 8, 5)
    x, style = torch.randn(2, 3, 4, 6), torch.randn(2, 5)
    y = layer(x, style)
    assert y.shape == (2, 3, 4, 8)
    torch.testing.assert_close(y.flatten(1, 2), layer(x.flatten(1, 2), style))
    torch.testing.assert_close(layer(x[:, 0, 0], style), y[:, 0, 0])
    torch.testing.assert_close(layer(x.mT.contiguous().mT, style), y)


def test_own_checkpoint_round_trip(generator, tmp_path):
    generator.mean_latent.normal_()
    checkpoint.save(generator, tmp_path / "g.safetensors")
    state_before = torch.get_rng_state()
    read = checkpoint.load(tmp_path / "g.safetensors")
    assert torch.equal(state_before, torch.get_rng_state())
    assert not read.training
    assert read.config == generator.config
    z = latents(generator, 2)
    assert torch.equal(read(z, truncation=0.7), generator(z, truncation=0.7))


def test_bad_checkpoints_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoint: got"):
        checkpoint.load(tmp_path / "none.safetensors")
    checkpoint.save(small(), tmp_path / "g.safetensors")
    whole = (tmp_path / "g.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.load(tmp_path / "cut.safetensors")
    (tmp_path / "other.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="was not written by cips_fast"):
        checkpoint.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 48}, "size: got 48, must be a power of two"),
        ({"variant": "both"}, "variant: got 'both', may be 'skip', 'res'"),
        ({"size": 2}, "size: got 2, must be a power of two from 4 to 65536"),
        ({"size": "64"}, "size: got '64', must be a power of two"),
        ({"size": 64.0}, r"size: got 64\.0, must be a power of two"),
        ({"size": 1 << 17}, "size: got 131072, must be"),
        ({"width": "wide"}, "width: got 'wide', must be 'published', or one or 3 whole numbers from 1 to 65536"),
        ({"width": (8, 8)}, r"width: got \(8, 8\), must be 3 whole numbers from 1 to 65536"),
        ({"width": (8, 8, "8")}, r"width: got \(8, 8, '8'\), must be 3 whole numbers"),
        ({"width": 0}, "width: got 0, must be 'published', or one or 3"),
        ({"width": True}, "width: got True, must be"),
        ({"width": None}, "width: got None, must be"),
        ({"width": 1 << 17}, "width: got 131072, must be"),
        ({"width": {"a": 1}}, "width: got {'a': 1}, must be"),
        ({"width": 9, "activation": "sinrelu"}, "width: got 9, activation 'sinrelu' needs even numbers"),
        ({"variant": None}, "variant: got None, may be 'skip'"),
        ({"activation": "relu"}, "activation: got 'relu'"),
        ({"activation": ["lrelu"]}, r"activation: got \['lrelu'\], may be"),
        ({"geometry": "torus"}, "geometry: got 'torus', may be 'plane'"),
        ({"embedding_size": 0}, "embedding_size: got 0, must be a whole number from 1 to 16384"),
        ({"embedding_size": 10**9}, "embedding_size: got 1000000000, must be a whole number from 1 to 16384"),
        ({"size": 1 << 15}, "embedding_size: got 32768, must be"),
        ({"encoding_features": 1.5}, r"encoding_features: got 1\.5, must be a whole number"),
        ({"style_features": "512"}, "style_features: got '512', must be a whole number from 1 to 65536"),
        ({"style_features": 10**400}, "style_features: got a number of 1329 bits, must be"),
        ({"mapping_layers": 0}, "mapping_layers: got 0, must be a whole number from 1 to 64"),
        ({"mapping_layers": 10**9}, "mapping_layers: got 1000000000, must be"),
        ({"max_frequency": float("nan")}, "max_frequency: got nan, must be a number from 0 to 1e"),
        ({"max_frequency": -1}, "max_frequency: got -1, must be"),
        ({"max_frequency": True}, "max_frequency: got True, must be"),
        ({"embedding_std": float("inf")}, "embedding_std: got inf, must be"),
        ({"embedding_std": "1"}, "embedding_std: got '1', must be"),
        ({"integer_coords": 1}, "integer_coords: got 1, must be True or False"),
        ({"align_corners": None}, "align_corners: got None, must be True or False"),
        ({"noise": "no"}, "noise: got 'no', must be True or False"),
        ({"pixel_chunk": -5}, "pixel_chunk: got -5, must be a whole number of at least 1, or None"),
        ({"pixel_chunk": "a"}, "pixel_chunk: got 'a', must be a whole number"),
        ({"backend": "magic"}, "backend: got 'magic'"),
        ({"backend": None}, "backend: got None, may be"),
        ({"size": 2048, "width": "published"}, "reach to size 1024"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        CIPSGenerator(**({"size": 16} | options))


@pytest.mark.parametrize("name", ["size", "width", "variant", "mapping_layers", "max_frequency", "noise", "backend"])
def test_bad_options_have_short_messages(name):
    for value in ([7] * 10**6, "x" * 10**6, {"a" * 10**6: [1] * 10**6}, 10**10000, [[[[[[[[["x"]]]]]]]]]):
        with pytest.raises(ValueError, match=f"^{name}: got ") as error:
            CIPSGenerator(**({"size": 16} | {name: value}))
        assert len(str(error.value)) < 400


def test_settings_may_be_numbers_of_numpy_and_are_kept_as_those_of_python():
    whole = np.int64
    made = CIPSGenerator(
        whole(8), width=(whole(4), whole(6)), style_features=whole(5), embedding_size=whole(3), mapping_layers=whole(2)
    )
    assert made.config == CIPSGenerator(8, width=(4, 6), style_features=5, embedding_size=3, mapping_layers=2).config
    assert json.loads(json.dumps(made.config)) == made.config


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ModFC("6", 8, 4), "in_features: got '6', must be a whole number from 1 to 65536"),
        (lambda: ModFC(6, 0, 4), "out_features: got 0, must be a whole number"),
        (lambda: ModFC(6, 8, 4, bias="no"), "bias: got 'no', must be True or False"),
        (lambda: ModFC(6, 8, 4, demodulate=None), "demodulate: got None, must be True or False"),
        (lambda: ModFC(6, 9, 4, activation="sinrelu"), "out_features: got 9, activation 'sinrelu' needs an even"),
        (lambda: ToRGB(6, 10**9), "style_features: got 1000000000, must be"),
        (lambda: Mapping(8, 65), "layers: got 65, must be a whole number from 1 to 64"),
        (lambda: FourierEncoding(8, 1 << 15), "cells: got 32768, must be a whole number from 1 to 16384"),
        (lambda: FourierEncoding(8, 4, max_frequency=float("nan")), "max_frequency: got nan"),
        (lambda: FourierEncoding(8, 4, backend="magic"), "backend: got 'magic', may be"),
    ],
)
def test_bad_options_of_layers_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_bad_inputs_are_named():
    generator = small()
    w = torch.zeros(2, 20)
    with pytest.raises(ValueError, match=r"w: got shape \[2, 19\], must be \[B, 20\] or \[B, 7, 20\]"):
        generator.synthesis(w[:, :19], grids.plane(2, 3))
    with pytest.raises(ValueError, match=r"coords: got shape \[3, 2, 2, 2\]"):
        generator.synthesis(w, torch.zeros(3, 2, 2, 2))
    with pytest.raises(ValueError, match="coords"):
        generator.synthesis(w, torch.zeros(5, 3))


def test_plane_grid():
    grid = grids.plane(2, 3)
    assert grid.tolist() == [[[-1, -1], [0, -1], [1, -1]], [[-1, 1], [0, 1], [1, 1]]]
    part = grids.plane(1, 2, region=(0.25, -0.5, 0.75, 0.5))
    assert part.tolist() == [[[0.25, -0.5], [0.75, -0.5]]]
    assert grids.integer(2, 3).tolist() == [[[0, 0], [1, 0], [2, 0]], [[0, 1], [1, 1], [2, 1]]]
    with pytest.raises(ValueError, match="height: got 0, must be at least 1"):
        grids.plane(0, 4)


def test_a_tile_of_the_plane_has_the_whole_images_coordinates():
    whole = grids.plane(1, 512)[0, :, 0]
    for first, last in ((0, 100), (37, 300), (256, 511)):
        region = (-1 + 2 * first / 511, -1, -1 + 2 * last / 511, -1)
        tile = grids.plane(1, last - first + 1, region)[0, :, 0]
        assert torch.equal(tile, whole[first : last + 1])

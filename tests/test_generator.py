"""CIPSGenerator: counts, shapes of coordinates, independence of pixels, latents, checkpoints of our own."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

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
        ({"geometry": "sphere"}, "geometry: got 'sphere', may be 'plane'"),
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


class Halved(ModFC):
    """A layer whose output is half of a ModFC's."""

    def forward(self, *inputs):
        return super().forward(*inputs) / 2


class Adapter(nn.Module):
    """A low-rank adapter around a layer, as fine-tuning libraries wrap them."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        outputs, inputs = layer.weight.shape
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x, style):
        return self.layer(x, style) + self.up(self.down(x))


def by_hand(generator, w, points):
    """Colours [B, P, 3] by the modules' own forward methods, whatever they are, written out."""
    x = before = generator.encoding(points[None])
    rgb = 0
    for place, layer in enumerate(generator.layers):
        before = x if place % 2 else before
        x = layer(x, w)
        if generator.variant == "res" and place and place % 2 == 0:
            shortcut = generator.shortcuts[place // 2 - 1]
            x = (x + (before if isinstance(shortcut, nn.Identity) else before @ shortcut().T)) / 2**0.5
        if place in generator.tapped:
            rgb = rgb + generator.to_rgb[generator.tapped.index(place)](x, w)
    return rgb


def replaced(places, make):
    def change(generator):
        for place in places:
            made = make(generator.layers[place])
            generator.layers[place] = made

    return change


def halved(layer):
    made = Halved(layer.weight.shape[1], layer.weight.shape[0], 20, activation=layer.activation)
    made.load_state_dict(layer.state_dict())
    return made


def other_forward(generator):
    layer, plain = generator.layers[2], generator.layers[2].forward
    layer.forward = lambda x, style: plain(x, style) + 1


CHANGES = {
    "subclass": (replaced([3], halved), "layers.3 is a Halved"),
    "adapters": (replaced([0, 2, 5], Adapter), "layers.0 is a Adapter"),
    "forward": (other_forward, "layers.2 has another forward method"),
    "hook": (lambda g: g.layers[1].register_forward_hook(lambda m, i, y: y * 0.5), "layers.1 has hooks"),
    "pre-hook": (lambda g: g.layers[4].register_forward_pre_hook(lambda m, i: (i[0] + 1, i[1])), "layers.4 has hooks"),
    "tap": (lambda g: g.to_rgb[0].register_forward_hook(lambda m, i, y: -y), "to_rgb.0 has hooks"),
    "encoding": (lambda g: g.encoding.register_forward_hook(lambda m, i, y: y.abs()), "encoding has hooks"),
    "child": (lambda g: g.layers[6].add_module("extra", nn.Linear(2, 2)), "layers.6 has other children"),
    "no bias": (lambda g: setattr(g.layers[1], "bias", None), "layers.1 has no bias"),
    "linear": (lambda g: setattr(g.layers[1], "activation", "linear"), "layers.1 has activation 'linear'"),
    "demodulate": (lambda g: setattr(g.layers[1], "demodulate", False), "layers.1 does not demodulate"),
    "old spectral norm": (lambda g: torch.nn.utils.spectral_norm(g.layers[1]), "layers.1 has hooks"),
}


@pytest.mark.parametrize(("backend", "pixel_chunk"), [("cpu", None), ("cpu", 20), ("reference", None)])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_generator_does_what_its_modules_say(generator, change, pixel_chunk, backend):
    generator = small(variant=generator.variant, backend=backend, pixel_chunk=pixel_chunk)
    make, words = CHANGES[change]
    w, points = generator.mapping(latents(generator, 2)).detach(), grids.plane(7, 8).flatten(0, 1)
    before = generator.synthesis(w, points)
    make(generator)
    with pytest.warns(UserWarning, match=f"generator: {words}, so its layers are called one by one"):
        got = generator.synthesis(w, points)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        assert generator.synthesis(w, points[:5]).shape == (2, 5, 3)
        grid = generator.synthesis(w, points.view(1, 7, 8, 2))
    wanted = by_hand(generator, w, points)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grid.flatten(2).mT, wanted, rtol=1e-4, atol=1e-4)
    if change not in ("child", "old spectral norm"):  # demodulation divides by a norm anyway
        assert (got - before).abs().max() > 1e-2
    parameters = [p for p in generator.layers.parameters() if p.requires_grad]
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(4))
    ours, theirs = (torch.autograd.grad(rgb, parameters, upstream, allow_unused=True) for rgb in (got, wanted))
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item())
    with pytest.raises(ValueError, match=f"mix: got weights of anchors for a generator whose {words}"):
        generator.synthesis(w, points, mix=torch.full((56, 2), 0.5))
    with pytest.raises(ValueError, match=f"generator: {words}, must be as it was built"):
        generator.network(w)


def test_hooks_see_every_layer_once_with_its_own_latent(generator):
    seen = []
    for name, module in generator.named_modules():
        if isinstance(module, ModFC | ToRGB):
            module.register_forward_hook(lambda m, inputs, y, name=name: seen.append((name, inputs[1], y.shape)))
    w = torch.randn(2, generator.num_layers, 20, generator=torch.Generator().manual_seed(3))
    plain = small(variant=generator.variant).synthesis(w, grids.plane(3, 5))
    with pytest.warns(UserWarning, match="has hooks"):
        torch.testing.assert_close(generator.synthesis(w, grids.plane(3, 5)), plain, rtol=1e-4, atol=1e-4)
    layers = [f"layers.{i}" for i in range(generator.num_layers)]
    assert [name for name, *_ in seen if name.startswith("layers")] == layers
    assert len(seen) == len(layers) + len(generator.to_rgb)
    places = dict(zip([f"to_rgb.{i}" for i in range(len(generator.to_rgb))], generator.tapped, strict=True))
    for name, latent, shape in seen:
        place = places[name] if name in places else layers.index(name)
        assert torch.equal(latent, w[:, place])
        assert shape[:2] == (2, 15)


def test_hooks_on_all_modules_are_called(generator):
    called = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, i, y: called.append(type(m)))
    try:
        with pytest.warns(UserWarning, match="hooks that are registered for all modules"):
            generator.synthesis(torch.zeros(1, 20), grids.plane(3, 5))
    finally:
        handle.remove()
    assert called.count(ModFC) == generator.num_layers


@pytest.mark.parametrize("change", ["hook", "replaced"])
def test_affine_layers_may_be_changed_and_keep_the_one_operator(generator, change):
    w, points = generator.mapping(latents(generator, 2)).detach(), grids.plane(7, 8).flatten(0, 1)
    affine = generator.layers[2].affine
    if change == "hook":
        affine.register_forward_hook(lambda m, i, s: s * torch.linspace(1, 2, s.shape[1]))
    else:
        generator.layers[2].affine = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, affine.weight.shape[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = generator.synthesis(w, points)
    torch.testing.assert_close(got, by_hand(generator, w, points), rtol=1e-4, atol=1e-4)
    mixed = generator.synthesis(w, points, mix=torch.tensor([[0.0, 1.0]]).expand(56, -1))
    torch.testing.assert_close(mixed, got[1:], rtol=1e-4, atol=1e-4)


def test_shortcuts_may_be_changed():
    generator = small(variant="res")
    w, points = generator.mapping(latents(generator, 2)).detach(), grids.plane(7, 8).flatten(0, 1)
    before = generator.synthesis(w, points)
    shortcut = next(s for s in generator.shortcuts if not isinstance(s, nn.Identity))
    shortcut.register_forward_hook(lambda m, i, matrix: 2 * matrix)
    got = generator.synthesis(w, points)
    assert (got - before).abs().max() > 1e-2
    torch.testing.assert_close(got, by_hand(generator, w, points), rtol=1e-4, atol=1e-4)
    identity = next(s for s in generator.shortcuts if isinstance(s, nn.Identity))
    called = []
    identity.register_forward_hook(lambda m, i, y: called.append(y.shape))
    with pytest.warns(UserWarning, match="shortcuts.0 has hooks"):
        torch.testing.assert_close(generator.synthesis(w, points), got, rtol=1e-4, atol=1e-4)
    assert called == [(2, 56, 24)]


def test_parametrised_weights_take_effect_in_the_one_operator(generator):
    w, points = generator.mapping(latents(generator, 2)).detach(), grids.plane(7, 8).flatten(0, 1)
    parametrizations.weight_norm(generator.layers[1])
    parametrizations.weight_norm(generator.layers[2].affine)
    generator.layers[1].parametrizations.weight.original0.data *= torch.linspace(0.5, 3, 24)[:, None]
    generator.layers[2].affine.parametrizations.weight.original0.data *= 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = generator.synthesis(w, points)
    torch.testing.assert_close(got, by_hand(generator, w, points), rtol=1e-4, atol=1e-4)


def test_noise_goes_through_changed_layers_or_is_refused():
    plain, hooked = small(noise=True), small(noise=True)
    for made in (plain, hooked):
        made.noise_strength.data.fill_(0.5)
    hooked.layers[2].register_forward_hook(lambda m, i, y: None)
    w, grid = plain.mapping(latents(plain, 2)).detach(), grids.plane(5, 6)
    torch.manual_seed(0)
    wanted = plain.synthesis(w, grid)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="layers.2 has hooks"):
        torch.testing.assert_close(hooked.synthesis(w, grid), wanted, rtol=1e-4, atol=1e-4)
    hooked.layers[3] = Adapter(hooked.layers[3])
    with pytest.raises(ValueError, match=r"noise: got True for a generator whose layers.3 is a Adapter, must be False"):
        hooked.synthesis(w, grid)


def test_modules_that_return_another_shape_are_named(generator):
    generator.layers[1].register_forward_hook(lambda m, i, y: y[:, :2])
    with (
        pytest.warns(UserWarning, match="has hooks"),
        pytest.raises(ValueError, match=r"layers.1: it returned shape \[1, 2, 24\], must be"),
    ):
        generator.synthesis(torch.zeros(1, 20), torch.zeros(5, 2))


def test_cells_that_are_read_as_they_stand_are_so_in_a_changed_generator():
    plain, hooked = (small(align_corners=False).train() for _ in range(2))
    hooked.encoding.register_forward_hook(lambda m, i, y: None)
    z = latents(plain, 2)
    with pytest.warns(UserWarning, match="encoding has hooks"):
        torch.testing.assert_close(hooked(z), plain(z), rtol=1e-4, atol=1e-4)
    assert (hooked.eval()(z) - plain(z)).abs().max() > 1e-2


def test_a_changed_generator_compiles_whole_and_copies(generator):
    w, grid = generator.mapping(latents(generator, 2)).detach(), grids.plane(5, 6)
    compiled = torch.compile(lambda w: generator.synthesis(w, grid), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(w), generator.synthesis(w, grid))
    generator.layers[1] = halved(generator.layers[1])
    with pytest.warns(UserWarning, match="layers.1 is a Halved"):
        wanted = generator.synthesis(w, grid)
    torch.testing.assert_close(compiled(w), wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(copy.deepcopy(generator).synthesis(w, grid), wanted)


def test_bad_latents_and_truncations_are_named():
    generator = small()
    z = torch.zeros(2, 20)
    for bad, words in (
        (z[:, :19], r"z: got shape \[2, 19\], must be \[B, 20\]"),
        (z[0], r"z: got shape \[20\], must be \[B, 20\]"),
        (z.int(), "z: got dtype torch.int32, must be floating"),
        (z.numpy(), r"z: got a ndarray, must be a tensor \[B, 20\]"),
    ):
        with pytest.raises(ValueError, match=words):
            generator(bad)
    for bad in (float("nan"), float("inf"), float("-inf"), "1", None):
        with pytest.raises(ValueError, match=f"truncation: got {bad!r}, must be a finite number"):
            generator(z, truncation=bad)
        with pytest.raises(ValueError, match="truncation: got"):
            generator.truncate(z, bad)
    with pytest.raises(ValueError, match=r"coords: got shape \[1, 2, 8, 9\], must be"):
        generator.synthesis(z, torch.zeros(1, 2, 8, 9))
    generator.pixel_chunk = "a"
    with pytest.raises(ValueError, match="pixel_chunk: got 'a', must be a whole number"):
        generator.synthesis(z, torch.zeros(5, 2))


def test_an_empty_batch_leaves_the_mean_latent(generator):
    generator.mean_latent.fill_(0.5)
    generator.track_mean_latent(torch.zeros(0, 20))
    assert (generator.mean_latent == 0.5).all()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("pixel_chunk", [None, 3])
@pytest.mark.parametrize("options", [{}, {"noise": True}, {"activation": "sin"}, {"geometry": "cylinder"}], ids=str)
def test_no_images_and_no_pixels(generator, backend, pixel_chunk, options):
    generator = small(variant=generator.variant, backend=backend, pixel_chunk=pixel_chunk, **options)
    forms = [(2, (0, 2)), (2, (2, 0, 2)), (2, (1, 0, 7, 2)), (2, (1, 7, 0, 2)), (2, (0, 7, 2))]
    forms += [(0, (5, 2)), (0, (0, 5, 2)), (0, (0, 2)), (0, (1, 3, 4, 2)), (0, (0, 3, 4, 2))]
    for batch, shape in forms:
        for per_layer in (False, True):
            generator.zero_grad()
            w = generator.mapping(latents(generator, batch))
            w = generator.mix(w, w, 3) if per_layer else w
            coords = torch.zeros(shape, requires_grad=True)
            rgb = generator.synthesis(w, coords)
            grid = len(shape) == 4 or (len(shape) == 3 and shape[0] != batch)
            assert rgb.shape == ((batch, 3, *shape[-3:-1]) if grid else (batch, shape[-2], 3))
            rgb.sum().backward()
            for parameter in (coords, *(p for p in generator.parameters() if p.requires_grad)):
                assert parameter.grad.shape == parameter.shape
                assert not parameter.grad.any()
    if "noise" not in options:
        w = generator.mapping(latents(generator, 3))
        for shape, images in (((0, 2), ()), ((0, 2), (4,)), ((5, 2), (0,)), ((0, 7, 2), ()), ((2, 7, 0, 2), (2,))):
            points = shape[-3:-1] if len(shape) > 2 else shape[:1]
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    rgb = generator.synthesis(w, torch.zeros(shape), mix=torch.zeros(*images, *points, 3))
                batch = (images or (1,))[0]
                assert rgb.shape == ((batch, 3, *points) if len(points) == 2 else (batch, *points, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_generator_of_fewer_bits_keeps_its_coordinates(generator, dtype):
    """Coordinates of 8 bits read the embedding up to half a cell aside."""
    cast = copy.deepcopy(generator).to(dtype)
    grid = grids.plane(33, 35)
    with torch.no_grad():
        got, wanted = (g.encoding(grid.view(1, -1, 2)).double() for g in (cast, generator.double()))
        assert got.shape == wanted.shape
        # Two roundings of the parameters, and one of the result.
        assert (got - wanted).abs().max() <= 4 * torch.finfo(dtype).eps * wanted.abs().max()
        w = latents(generator, 2).double()
        colours, truth = cast.synthesis(w.to(dtype), grid).double(), generator.synthesis(w, grid.double())
    assert (colours - truth).norm() <= 16 * torch.finfo(dtype).eps * truth.norm()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_latents_that_overflow_give_nan_and_not_black(generator, backend):
    generator = small(variant=generator.variant, backend=backend)
    w = latents(generator, 2)
    w[1] *= 1e22
    rgb = generator.synthesis(w, grids.plane(3, 5))
    assert rgb[1].isnan().all()
    torch.testing.assert_close(rgb[0], generator.synthesis(w[:1], grids.plane(3, 5))[0], rtol=1e-4, atol=1e-4)

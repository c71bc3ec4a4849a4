"""Published checkpoints: recorded outputs, the formulas stated again, the way back, and dicts that do not fit."""

import pytest
import torch

from cips_fast import CIPSGenerator, grids, load_published
from cips_fast.kernels.device import standing_in
from cips_fast.published import save_published, to_published

from .golden_cases import load_case
from .published_formulas import draw_state, images


def relative_error(got, wanted):
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


NAMES = ["cips_skip_16", "cips_skip_16_train", "cips_res_16"]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_recorded_outputs(name, backend):
    state, arrays, meta = load_case(name)
    arrays = {key: torch.as_tensor(value) for key, value in arrays.items()}
    generator = load_published(state, backend=backend)
    assert not generator.training
    generator.train(meta["train_mode"])
    coords = arrays["coords"].permute(0, 2, 3, 1)
    with torch.no_grad():
        w = generator.mapping(arrays["z"])
        assert relative_error(w, arrays["w"]) <= 1e-5
        assert relative_error(generator.synthesis(w, coords), arrays["rgb"]) <= 1e-5
        assert relative_error(generator(arrays["z"], coords), arrays["rgb"]) <= 1e-5
        if "rgb_truncated" in arrays:
            truncated = load_published(state, mean_latent=arrays["mean_w"], backend=backend)
            got = truncated(arrays["z"], coords, truncation=arrays["truncation"].item())
            assert relative_error(got, arrays["rgb_truncated"]) <= 1e-5


WAYS = [
    (name, way) for name in NAMES for way in ("stack", "layered", "synthesis") if "res" not in name or way != "layered"
]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_recorded_outputs_by_kernels_in_the_interpreter(name, way, interpreter, large_tiles, monkeypatch):
    """In one launch, in one a layer, and as training does it."""
    monkeypatch.setenv("CIPS_FAST_INFERENCE", "auto" if way == "synthesis" else way)
    state, arrays, meta = load_case(name)
    arrays = {key: torch.as_tensor(value) for key, value in arrays.items()}
    generator = load_published(state, backend="triton").train(meta["train_mode"])
    with torch.set_grad_enabled(way == "synthesis"), standing_in(interpreter):
        rgb = generator.synthesis(arrays["w"], arrays["coords"].permute(0, 2, 3, 1))
    assert rgb.requires_grad == (way == "synthesis")
    assert relative_error(rgb.detach(), arrays["rgb"]) <= 1e-5


CASES = [
    ("skip", 8, "lrelu", (5, 11), False),
    ("skip", 8, "sin", (8, 8), False),
    ("skip", 8, "sinrelu", (4, 6), False),
    ("res", 8, "sinrelu", (6, 4), False),
    ("res", 128, "lrelu", (3, 5), False),  # narrows: the shortcuts have weights
    ("skip", 128, "lrelu", (3, 5), False),
    ("skip", 8, "lrelu", (8, 8), True),
    ("skip", 8, "lrelu", (8, 4), True),  # train mode, not the native size
]


@pytest.mark.parametrize(("variant", "size", "activation", "shape", "training"), CASES)
@pytest.mark.parametrize("integer", [False, True], ids=["unit", "integer"])
def test_formulas(variant, size, activation, shape, training, integer):
    state = draw_state(variant, size, activation, seed=size, hidden=48, style=40, scale_widths=1 / 8, mapping=3)
    z = torch.randn(2, 40, generator=torch.Generator().manual_seed(7))
    grid = grids.integer(*shape) if integer else grids.plane(*shape)
    coords = grid.permute(2, 0, 1).expand(2, -1, -1, -1)
    wanted = images(state, variant, activation, z, coords, size, training)
    given = None if activation == "lrelu" else activation
    generator = load_published(state, variant=variant, size=size, activation=given, integer_coords=integer)
    generator.train(training)
    assert relative_error(generator(z, grid), wanted) <= 1e-5
    if shape == (size, size):
        assert relative_error(generator(z), wanted) <= 1e-5


def test_checkpoint_files(tmp_path):
    state = draw_state("skip", 8, "lrelu", 3, hidden=16, style=12, scale_widths=1 / 64, mapping=2)
    wrong = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"g": wrong, "d": {}, "g_ema": state}, tmp_path / "whole.pt")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "parallel.pt")
    z = torch.randn(1, 12, generator=torch.Generator().manual_seed(1))
    wanted = load_published(state)(z)
    assert torch.equal(load_published(tmp_path / "whole.pt")(z), wanted)
    assert torch.equal(load_published(str(tmp_path / "parallel.pt"))(z), wanted)
    with pytest.raises(FileNotFoundError, match="checkpoint: got"):
        load_published(tmp_path / "absent.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    torch.save({"g_ema": state, "args": object}, tmp_path / "objects.pt")
    for name in ("cut.pt", "objects.pt"):
        with pytest.raises(ValueError, match="cannot be read as tensors alone"):
            load_published(tmp_path / name)


def test_the_callers_dict_is_left_alone():
    state = draw_state("skip", 8, "lrelu", 3, hidden=16, style=12, scale_widths=1 / 64, mapping=2)
    before = {name: tensor.clone() for name, tensor in state.items()}
    generator = load_published(state)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(1)
    assert all(torch.equal(state[name], before[name]) for name in state)


def test_mean_latent_is_sampled_unless_given():
    state = draw_state("skip", 8, "lrelu", 3, hidden=16, style=12, scale_widths=1 / 64, mapping=2)
    generator = load_published(state)
    z = torch.randn(20_000, 12, generator=torch.Generator().manual_seed(5))
    mean = generator.mapping(z).mean(0)
    assert (generator.mean_latent - mean).norm() < 0.05 * mean.norm()
    assert torch.equal(load_published(state, mean_latent=torch.ones(12)).mean_latent, torch.ones(12))


def test_noise_of_a_checkpoint_is_used():
    state = draw_state("skip", 8, "lrelu", 3, hidden=16, style=12, scale_widths=1 / 64, mapping=2)
    z = torch.randn(1, 12, generator=torch.Generator().manual_seed(1))
    quiet = load_published(state)
    assert not quiet.noise
    noisy = load_published(state | {"conv1.noise.weight": torch.tensor([0.3])})
    assert noisy.noise_strength.tolist() == pytest.approx([0.3, 0, 0, 0, 0])
    assert (noisy(z) - quiet(z)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["cips_skip_16", "cips_res_16"])
def test_recorded_names_and_shapes_come_back(name):
    state, _, _ = load_case(name)
    back = to_published(load_published(state))
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].shape == tensor.shape
        assert torch.equal(back[key], tensor), key


@pytest.mark.parametrize(
    ("variant", "size", "activation"),
    [("skip", 8, "sin"), ("res", 8, "sinrelu"), ("res", 128, "lrelu"), ("skip", 128, "lrelu")],
)
def test_every_class_and_activation_comes_back(variant, size, activation):
    state = draw_state(variant, size, activation, seed=3, hidden=48, style=40, scale_widths=1 / 8, mapping=3)
    back = to_published(load_published(state, activation=activation))
    assert {key: list(tensor.shape) for key, tensor in back.items()} == {k: list(t.shape) for k, t in state.items()}
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("options", [{}, {"variant": "res", "integer_coords": True}, {"activation": "sin"}], ids=str)
def test_a_generator_of_ours_comes_back_from_a_published_file(tmp_path, options):
    torch.manual_seed(2)
    generator = CIPSGenerator(8, width=12, style_features=16, align_corners=False, **options).eval()
    save_published(generator, tmp_path / "g.pt")
    told = {name: value for name, value in options.items() if name != "variant"}
    again = load_published(tmp_path / "g.pt", **told)
    z = torch.randn(2, 16)
    points = torch.rand(40, 2) * 2.2 - 1.1
    with torch.no_grad():
        assert torch.equal(again(z), generator(z))
        assert torch.equal(again.synthesis(again.mapping(z), points), generator.synthesis(generator.mapping(z), points))
    assert (again.config["noise"], again.variant) == (False, generator.variant)


def test_what_comes_back_is_a_copy():
    generator = CIPSGenerator(8, width=12, style_features=16, align_corners=False)
    back = to_published(generator)
    with torch.no_grad():
        generator.layers[0].weight.zero_()
        generator.encoding.freq.zero_()
        generator.encoding.embedding.zero_()
    assert all(back[name].any() for name in ("conv1.conv.weight", "lff.ffm.conv.weight", "emb.input"))


def test_only_noise_that_is_used_comes_back():
    generator = CIPSGenerator(8, width=12, style_features=16, align_corners=False, noise=True)
    with torch.no_grad():
        generator.noise_strength.copy_(torch.tensor([0.1, 0.0, 0.3, 0.4, 0.5]))
    again = load_published(to_published(generator))
    assert again.noise
    assert torch.equal(again.noise_strength, generator.noise_strength)
    generator.noise = False
    again = load_published(to_published(generator))
    assert not again.noise
    assert not again.noise_strength.any()


@pytest.mark.parametrize(
    ("generator", "words"),
    [
        (CIPSGenerator(8, width=4, style_features=4), "align_corners: got True, .* only be of False"),
        (CIPSGenerator(8, width=4, style_features=4, align_corners=False).double(), "dtype: got torch.float64"),
    ],
)
def test_generators_that_the_published_code_does_not_have_are_refused(generator, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        save_published(generator, tmp_path / "g.pt")
    assert not list(tmp_path.iterdir())


def damaged(**changes):
    state = draw_state("skip", 8, "lrelu", 3, hidden=16, style=12, scale_widths=1 / 64, mapping=2)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("state", "options", "words"),
    [
        (damaged(conv1__activate__bias=None), {}, r"conv1.activate.bias: missing, must be \[8\]"),
        (damaged(stranger=torch.zeros(2)), {}, r"stranger: unexpected, \[2\]"),
        (damaged(style__2__bias=torch.zeros(3)), {}, r"style.2.bias: got \[3\], must be \[12\]"),
        (damaged(emb__input=None), {}, "lacks emb.input"),
        ({"weight": torch.zeros(1)}, {}, "not a published CIPS generator"),
        (damaged(), {"size": 16}, "size: got 16, but the state_dict's names and shapes are of 8"),
        (damaged(), {"variant": "res"}, "variant: got 'res', but"),
        (damaged(), {"activation": "sin"}, "activation: got 'sin', by the biases' names it is 'lrelu'"),
        (draw_state("res", 4, "sin", 1, 8, 8, 1 / 64, 1), {}, "activation: got None, .* it is 'sin' or 'sinrelu'"),
    ],
)
def test_dicts_that_do_not_fit_are_refused(state, options, words):
    with pytest.raises(ValueError, match=words):
        load_published(state, **options)

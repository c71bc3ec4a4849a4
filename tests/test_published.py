"""Published checkpoints: recorded outputs, the formulas stated again, the way back, and dicts that do not fit."""

import argparse
import os
import pickle
import random
import zipfile

import pytest
import safetensors.torch
import torch

from cips_fast import CIPSGenerator, checkpoint, grids, load_published
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


@pytest.mark.exhaustive("cips_skip_16_train-*")
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


def tiny_state():
    return draw_state("skip", 8, "lrelu", 3, hidden=16, style=12, scale_widths=1 / 64, mapping=2)


def refusal(source):
    """The message with which a source is refused, which is one short line."""
    with pytest.raises(ValueError, match=r"^(checkpoint|state_dict|activation)") as raised:
        load_published(source)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 700
    return str(raised.value)


@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_every_cut_or_flipped_file_is_refused_or_the_same(tmp_path, kind):
    """A zip holds checksums. The older kind does not, so only cut-off ones are tried."""
    path, state = tmp_path / "cut.pt", tiny_state()
    torch.save({"g_ema": state}, path, _use_new_zipfile_serialization=kind == "zip")
    whole, rng = path.read_bytes(), random.Random(0)
    for length in sorted({*range(40), *range(0, len(whole), len(whole) // 100), len(whole) - 1}):
        path.write_bytes(whole[:length])
        assert refusal(path), length
    if kind == "pickle":
        return
    same = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        read = read_or_message(path)
        if isinstance(read, str):
            assert len(read.splitlines()) == 1
        else:
            back = to_published(read)
            assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
            same += 1
    assert same < 75


def read_or_message(path):
    """The generator, or the documented error's message."""
    try:
        return load_published(path)
    except ValueError as error:
        return str(error)


class Command:
    def __reduce__(self):
        return eval, ("open('executed', 'w')",)


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for new in (True, False):
        torch.save({"g_ema": tiny_state(), "args": Command()}, "evil.pt", _use_new_zipfile_serialization=new)
        message = refusal("evil.pt")
        assert "cannot be read as tensors alone (it holds" in message
        assert "weights_only" not in message
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Command()))
    assert "weights_only" not in refusal("evil.pt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(argparse.Namespace(size=3)))
    assert "cannot be read as tensors alone" in refusal("evil.pt")
    assert [file.name for file in tmp_path.iterdir()] == ["evil.pt"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), "holds a Tensor, must hold a dict of tensors"),
        ([torch.zeros(3)], "holds a list"),
        (None, "holds a NoneType"),
        (3.5, "holds a float"),
        ("text", "holds a str"),
        ({}, "it has no tensors"),
        ({"g_ema": None}, "state_dict: got NoneType"),
        ({"g_ema": {"g_ema": {"g_ema": torch.zeros(1)}}}, "state_dict: got Tensor"),
        ({"g_ema": [1]}, "state_dict: got list"),
        ({1: torch.zeros(1), (2,): torch.zeros(1)}, "it has no tensors"),
        ({"a": 1, "b": {"c": torch.zeros(1)}}, "it has no tensors"),
        ({"stranger.weight": torch.zeros(1)}, "it has stranger.weight"),
        ({"x" * 9999: torch.zeros(1)}, "it has xxxxxxxxxx"),
        ({"emb.input": torch.zeros(2, dtype=torch.int64)}, "emb.input: got torch.int64, must be a floating tensor"),
        ({"emb.input": torch.zeros(2, dtype=torch.complex64)}, "emb.input: got torch.complex64"),
        ({"emb.input": torch.zeros(2, device="meta")}, "emb.input: got a tensor of layout torch.strided on meta"),
        ({"emb.input": torch.zeros(2, 2).to_sparse()}, "emb.input: got a tensor of layout torch.sparse_coo"),
        ({"emb.input": torch.zeros(1).expand(10**12)}, "emb.input: got fewer values than its shape has"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("new", [True, False], ids=["zip", "pickle"])
def test_files_that_hold_something_else(tmp_path, content, words, new):
    torch.save(content, tmp_path / "other.pt", _use_new_zipfile_serialization=new)
    assert words in refusal(tmp_path / "other.pt")


def test_a_file_that_was_compressed_again_is_refused(tmp_path):
    """It might be small and hold more than memory does."""
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "its parts are compressed" in refusal(tmp_path / "b.pt")


def test_a_file_written_without_checksums_is_taken(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"g_ema": tiny_state()}, tmp_path / "g.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_published(tmp_path / "g.pt").size == 8


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"g_ema": {f"module.{name}": t for name, t in state.items()}},
        lambda state: {f"module.module.{name}": t for name, t in state.items()},
        lambda state: {f"_orig_mod.{name}": t for name, t in state.items()},
        lambda state: {f"module._orig_mod.module.{name}": t for name, t in state.items()},
        lambda state: {name.replace("conv1.", "conv1._orig_mod."): t for name, t in state.items()},
        lambda state: {"epoch": 3, "state_dict": state},
        lambda state: {"state_dict": {"g_ema": state}},
        lambda state: {"state_dict": {f"generator.{name}": t for name, t in state.items()} | {"d.x": torch.zeros(1)}},
        lambda state: {f"G.module.{name}": t for name, t in state.items()},
        lambda state: {f"module.g_ema._orig_mod.{name}": t for name, t in state.items()} | {"g.x": torch.zeros(1)},
        lambda state: {"generator": state, "discriminator": {}},
        lambda state: state | {"loss": 0.5, "args": {"size": 8}, 3: None},
        lambda state: {name: t.double() for name, t in state.items()},
    ],
)
def test_what_others_write_around_names(wrap):
    state = tiny_state()
    read, wanted = load_published(wrap(state)).state_dict(), load_published(state).state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in wanted.items())


def test_half_precision_is_read_as_float32():
    state = {name: tensor.half() for name, tensor in tiny_state().items()}
    wanted = load_published({name: tensor.float() for name, tensor in state.items()}).state_dict()
    read = load_published(state).state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in wanted.items())


def test_names_that_become_one_are_refused():
    state = tiny_state()
    assert "are both 'emb.input'" in refusal(state | {"module.emb.input": state["emb.input"]})


def test_files_of_other_kinds(tmp_path):
    (tmp_path / "x.txt").write_text("nothing of the kind")
    assert "x.txt' is not a checkpoint" in refusal(tmp_path / "x.txt")
    (tmp_path / "x.pt").touch()
    assert "x.pt' is empty" in refusal(tmp_path / "x.pt")
    checkpoint.save(CIPSGenerator(8, width=4, style_features=4), tmp_path / "ours.pt")
    assert "is one of cips_fast's own, which cips_fast.load reads" in refusal(tmp_path / "ours.pt")
    safetensors.torch.save_file(tiny_state(), tmp_path / "theirs.pt")
    assert load_published(tmp_path / "theirs.pt").size == 8
    for source in (None, 3, [tiny_state()]):
        assert "must be a dict of tensors" in refusal(source)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_refused(value):
    state = tiny_state()
    state["linears.0.conv.weight"].view(-1)[3] = value
    assert refusal(state) == "state_dict: linears.0.conv.weight: 1 of 64 values are not finite"


def test_a_mean_latent_of_another_network_is_refused():
    with pytest.raises(ValueError, match=r"mean_latent: got shape \[13\], must be \[12\]"):
        load_published(tiny_state(), mean_latent=torch.zeros(13))


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_published_file_has_the_mode_that_the_umask_says(tmp_path):
    save_published(CIPSGenerator(8, width=4, style_features=4, align_corners=False), tmp_path / "g.pt")
    (tmp_path / "other").touch()
    assert (tmp_path / "g.pt").stat().st_mode == (tmp_path / "other").stat().st_mode


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
        (CIPSGenerator(8, width=4, style_features=4), "align_corners: got True, must be False in a published"),
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
        (damaged(emb__input=torch.zeros(8)), {}, r"emb.input: got \[8\], must have 4 dimensions"),
        (damaged(emb__input=torch.zeros(1, 0, 8, 8)), {}, "encoding_features: got 0, must be a whole number"),
        (damaged(emb__input=torch.zeros(1, 8, 9, 8)), {}, r"emb.input: got \[1, 8, 9, 8\], must be \[1, 8, 8, 8\]"),
        (damaged(style__1__weight=torch.zeros(())), {}, r"style.1.weight: got \[\], must have 2 dimensions"),
        (damaged(linears__1__conv__weight=torch.zeros(2)), {}, r"linears.1.conv.weight: got \[2\], must have 5"),
        (
            damaged(linears__1__conv__weight=torch.zeros(1, 0, 8, 1, 1)),
            {},
            r"width: got \[0, 8\], must be 2 whole numbers",
        ),
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

"""Options: every number's range, options that do not fit together, paths, and what a dry run says."""

import itertools
import os
import sys

import pytest
import torch

from cips_fast.command_line import OptionError
from cips_fast.train import dry_run, memory
from cips_fast.train.__main__ import main
from cips_fast.train.config import RANGES, parse, resolve
from cips_fast.train.options import Options
from cips_fast.train.trainer import Trainer

SMALL = ["--res", "32", "--device", "cpu", "--dry-run"]
LEAST = {
    "res": 4, "crop": 4, "batch": 1, "width": 2, "style_features": 1, "embedding_size": 1, "mapping_layers": 1,
    "d_channels": 1, "d_base": 4, "r1_every": 1, "pixel_chunk": 1, "device": "cpu", "precision": "fp32",
}  # fmt: skip


def refusal(*arguments):
    """The one line that refuses a command."""
    with pytest.raises(OptionError) as caught:
        parse([*SMALL, *arguments])
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def flag(name):
    return f"--{name.replace('_', '-')}"


def beyond(name):
    """Texts that the option does not take."""
    least, most = RANGES[name]
    texts = ["nan", "inf", "-inf", "", "x", "1e400"]
    numbers = [-1, 0, 2**63, 2**64, 10**40, 10**400, most + 1 if isinstance(most, int) else most * 1.001]
    return texts + [
        repr(number) if isinstance(number, float) else f"{number:d}"
        for number in numbers
        if not (least <= number <= most)
    ]


@pytest.mark.parametrize("name", RANGES)
def test_every_number_has_a_least_and_a_most(name):
    for text in beyond(name):
        assert refusal(f"{flag(name)}={text}").startswith(f"{flag(name)}: got ")


@pytest.mark.parametrize("name", RANGES)
def test_least_and_most_are_taken(name):
    least, most = RANGES[name]
    for value in (max(least, 32) if name == "d_base" else least, most):
        options, _ = parse([*SMALL, "--embedding-size", "4", flag(name), str(value)])
        assert getattr(options, name) == value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--res", "0"], "--res: got 0, must be a power of two from 4 to 16384"),
        (["--res", "-4"], "--res: got -4, must be a power of two"),
        (["--res", "32768"], "--res: got 32768, must be a power of two"),
        (["--res", str(2**63)], f"--res: got {2**63}, must be a power of two"),
        (["--res", "1e3"], "--res: got '1e3', must be a whole number"),
        (["--crop", "0"], "--crop: got 0, must be a power of two from 4 to 32, which is --res"),
        (["--crop", "64"], "--crop: got 64, must be a power of two from 4 to 32, which is --res"),
        (["--d-base", "8"], "--d-base: got 8, must be at least --crop 32"),
        (["--d-base", "8", "--crop", "16"], "--d-base: got 8, must be at least --crop 16"),
        (["--activation", "sinrelu", "--width", "9"], "--width: got 9, must be even with --activation sinrelu"),
        (["--res", "2048", "--width", "published"], "--width: got 'published', must be a number with --res 2048"),
        (["--width", "abc"], "--width: got 'abc', must be 'published' or a whole number"),
        (["--width", "8.5"], "--width: got '8.5', must be 'published' or a whole number"),
        (["--stride-shares", "a,b"], "--stride-shares: got 'a,b', must be numbers with commas"),
        (["--stride-shares", "0.5,0.5"], "--stride-shares: got '0.5,0.5', must be 1 share, of stride 1"),
        (["--crop", "8", "--stride-shares", "nan,0,1"], "--stride-shares: got 'nan,0,1', must be 3 shares"),
        (["--crop", "8", "--stride-shares", "inf,0,1"], "--stride-shares: got 'inf,0,1', must be 3 shares"),
        (["--crop", "8", "--stride-shares", "1e308,1e308,1"], "--stride-shares: got '1e+308,1e+308,1', must be 3"),
        (["--crop", "8", "--stride-shares=-1,1,1"], "--stride-shares: got '-1,1,1', must be 3 shares"),
        (["--crop", "8", "--stride-shares", "0.3,0.3,0.3"], "that sum to 1, with --res 32 and --crop 8"),
        (["--preset", "big"], "--preset: got 'big', must be one of auto, cips, cpu"),
        (["--backend", ""], "--backend: got '', must be one of "),
        (["--geometry", "sphere"], "--geometry: got 'sphere', must be one of plane, cylinder, torus"),
        (["--device", ""], "--device: got '', must be auto, cpu"),
        (["--device", "cpu:1"], "--device: got 'cpu:1', must be auto, cpu"),
        (["--device", "cuda:" + "9" * 30], "--device: got 'cuda:999"),
        (["--data", ""], "--data: got '', which cannot be used (an empty name)"),
        (["--out", ""], "--out: got '', which cannot be used (an empty name)"),
    ],
)
def test_bad_options_are_named(arguments, words):
    assert words in refusal(*arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_said_to_be_missing():
    why = "no CUDA device was found" if torch.backends.cuda.is_built() else "this PyTorch has no CUDA"
    assert refusal("--device", "cuda") == f"--device: got 'cuda', must be auto, cpu on this machine ({why})"


STRUCTURE = {
    "width": ("1", "16384", "published"), "style-features": ("1", "16384"), "embedding-size": ("1", "16384"),
    "mapping-layers": ("1", "20"), "d-channels": ("1", "16384"), "d-base": ("4", "2147483647"),
    "crop": ("4", "32"), "activation": ("sin", "sinrelu"), "variant": ("res",), "geometry": ("cylinder",),
    "batch": ("1", "65536"), "pixel-chunk": ("1", "2147483647"), "preset": ("cips",), "res": ("4", "512"),
}  # fmt: skip


def parsed(arguments):
    """Options, or the line that refuses them."""
    try:
        return parse(arguments)[0], None
    except OptionError as error:
        return None, str(error)


@pytest.mark.parametrize("name", STRUCTURE)
def test_pairs_of_extremes_are_taken_or_refused_in_a_line(name):
    for other in list(STRUCTURE)[list(STRUCTURE).index(name) + 1 :]:
        for values in itertools.product(STRUCTURE[name], STRUCTURE[other]):
            given = {"res": "32", "crop": "4", "embedding-size": "4", name: values[0], other: values[1]}
            options, error = parsed(["--device", "cpu", "--dry-run", *(f"--{n}={v}" for n, v in given.items())])
            assert options is not None or error.startswith(("--d-base: ", "--width: ", "--crop: "))


@pytest.mark.parametrize("change", [{}, {"variant": "res"}, {"activation": "sinrelu"}, {"geometry": "cylinder"}])
@pytest.mark.parametrize("name", ["", "batch", "style_features", "embedding_size", "mapping_layers", "d_channels"])
def test_what_is_taken_can_be_trained(name, change):
    options = resolve(LEAST | {"data": "bluemarble"} | change | ({name: 3} if name else {}))
    step = Trainer(options).step(torch.rand(options.batch, 3, 4, 4), torch.rand(options.batch, 4, 4, 2) * 2 - 1)
    assert step.g_loss.isfinite()
    assert step.d_loss.isfinite()


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("0.3333333,0.3333333,0.3333333", (1 / 3,) * 3),
        ("0.333333,0.333333,0.333333", (1 / 3,) * 3),
        ("0.2000001,0.3,0.5000001", (0.2000001 / 1.0000002, 0.3 / 1.0000002, 0.5000001 / 1.0000002)),
        ("0.1,0.2,0.7", (0.1, 0.2, 0.7)),  # unchanged, so that a run that was begun with them resumes
        ("0,0,1", (0.0, 0.0, 1.0)),
    ],
)
def test_shares_that_nearly_sum_to_one_are_normalised(given, want):
    options, _ = parse([*SMALL, "--crop", "8", "--stride-shares", given])
    assert options.stride_shares == pytest.approx(want, rel=1e-12)
    assert abs(sum(options.stride_shares) - 1) < 1e-12


@pytest.mark.skipif(os.name != "posix", reason="links and long names as POSIX has them")
@pytest.mark.parametrize("option", ["data", "out"])
def test_paths_that_cannot_be(option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "file").touch()
    for path, reason in [
        ("a", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
        ("file/below", "Not a directory"),
        ("nul\0", "embedded null byte"),
        ("\ud800", "surrogates not allowed"),
    ]:
        message = refusal(f"--{option}", path)
        assert message.startswith(f"--{option}: got {path!r}, which cannot be used (")
        assert reason in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "--data: no data called 'nowhere'"),
        (["--data", "~nobodyhere/x"], "--data: '~nobodyhere/x' cannot be opened ("),
        (["--geometry", "cylinder"], "--data: 'landscapes' has no panoramas of 360 degrees; for --geometry cylinder"),
        (["--data", "bluemarble"], "--data: bluemarble has no resolution 32: --res may be 64 to 512"),
        (["--res", "16384", "--embedding-size", "4"], "landscapes have no resolution 16384: --res may be up to 8192"),
    ],
)
@pytest.mark.parametrize("dry", [True, False], ids=["dry", "run"])
def test_a_dry_run_refuses_data_as_the_run_does(arguments, words, dry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*(SMALL if dry else SMALL[:-1]), "--width", "8", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert words in errors[0]
    assert not list(tmp_path.iterdir())


def described(**changes):
    return dry_run.describe(resolve({"res": 32, "device": "cpu"} | changes))


def test_a_dry_run_counts_a_checkpoint():
    needs = dry_run.needs_of(resolve(LEAST))
    generator, discriminator = Trainer(resolve(LEAST)).generator, Trainer(resolve(LEAST)).discriminator
    g, d = (sum(p.numel() for p in module.parameters()) for module in (generator, discriminator))
    assert needs.checkpoint == 4 * (4 * g + 3 * d)  # weights, average and two moments; weights and two moments
    assert "MiB per checkpoint; the newest 3 are kept" in described()


def test_too_little_memory_is_a_warning_in_a_dry_run_and_refused_in_a_run(monkeypatch):
    needs = dry_run.needs_of(resolve({"res": 32, "device": "cpu"}))
    needed = needs.state + needs.batch + needs.activations
    monkeypatch.setattr(dry_run, "memory_bytes", lambda device: needed)
    assert "warning" not in described()
    monkeypatch.setattr(dry_run, "memory_bytes", lambda device: needed - 1)
    last = described().splitlines()[-1]
    assert last.startswith("warning: the run needs about ")
    assert last.endswith("smaller with a smaller --pixel-chunk, --batch or --crop")
    parse(SMALL[:-1])  # the estimate is of twice what fused kernels keep
    monkeypatch.setattr(dry_run, "memory_bytes", lambda device: needs.state + 1)
    with pytest.raises(OptionError, match=r"^--batch 16, --crop 32: a step needs .* --pixel-chunk, --batch or --crop"):
        parse(SMALL[:-1])
    monkeypatch.setattr(dry_run, "memory_bytes", lambda device: needs.state - 1)
    with pytest.raises(
        OptionError, match=r"^--width 128, --embedding-size 4, .*: the networks and their averages need"
    ):
        parse(SMALL[:-1])
    assert parse(SMALL)[1]
    monkeypatch.setattr(dry_run, "memory_bytes", lambda device: None)
    assert "warning" not in described()
    parse(SMALL[:-1])


def test_memory_is_the_least_of_the_limits(tmp_path, monkeypatch):
    machine_has = memory.memory_bytes("cpu")
    (tmp_path / "memory.max").write_text("1048576\n")
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (str(tmp_path / "none"), str(tmp_path / "memory.max")))
    assert memory.memory_bytes("cpu") == 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.memory_bytes("cpu") >= (machine_has or 0)
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert memory.memory_bytes("cpu") is None
    assert memory.memory_bytes("mps") is None


def test_what_is_printed_is_ascii(data, capsys):
    assert described(data=str(data)).isascii()
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert capsys.readouterr().out.isascii()
    for name in RANGES:
        assert refusal(f"{flag(name)}=-1").isascii()


def test_options_are_a_dataclass_of_plain_values():
    options = resolve({"res": 32, "device": "cpu"})
    assert isinstance(options, Options)
    assert resolve(vars(options)) == options

"""cips_fast.load, latents and save_image, and the commands that call them."""

import math
import os
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

import cips_fast
from cips_fast import CIPSGenerator, checkpoint, published
from cips_fast.__main__ import main
from cips_fast.commands._options import style_latents
from cips_fast.files import pictures

from .pictures import read
from .published_formulas import draw_state


def small(seed=0, **options):
    torch.manual_seed(seed)
    return CIPSGenerator(8, width=8, style_features=8, mapping_layers=2, **options).eval()


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def run(tmp_path):
    """A run folder with the checkpoints of steps 1 to 3, which are of seeds 1 to 3."""
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (1, 2, 3):
        state = small(step).state_dict()
        tensors = {f"ema.{name}": t for name, t in state.items()} | {f"generator.{n}": t * 0 for n, t in state.items()}
        settings = checkpoint.read_tensors(saved(small(step), tmp_path / "one"))[1]["cips_fast"]
        checkpoint.write_tensors(folder / f"step-00000000{step}.safetensors", tensors, {"cips_fast": settings})
    (folder / "latest").write_text("step-000000003.safetensors")
    return folder.parent


def saved(generator, path):
    checkpoint.save(generator, path)
    return path


@pytest.mark.parametrize("name", ["g.safetensors", "g.pt", "g.pth.tar", "g.bin", "g", "G.CKPT", "g.SAFETENSORS", "ü ²"])
def test_a_file_is_told_by_its_content(tmp_path, name):
    ours, theirs = small(1), small(2, align_corners=False)
    assert same(cips_fast.load(saved(ours, tmp_path / name)), ours)
    published.save_published(theirs, tmp_path / name)
    read = cips_fast.load(str(tmp_path / name))
    theirs.mean_latent.copy_(read.mean_latent)  # no published file has it
    assert same(read, theirs)
    assert not read.training


def test_options_of_a_published_file(tmp_path):
    path = tmp_path / "theirs"
    torch.save({"g_ema": draw_state("skip", 8, "sin", 3, hidden=16, style=12, scale_widths=1 / 64, mapping=2)}, path)
    read = cips_fast.load(path, activation="sin", integer_coords=True, backend="reference")
    assert (read.activation, read.integer_coords, read.backend) == ("sin", True, "reference")
    with pytest.raises(ValueError, match="activation: got None, by the biases' names it is 'sin' or 'sinrelu'"):
        cips_fast.load(path)


def test_options_of_our_file_are_checked(tmp_path):
    path = saved(small(), tmp_path / "g")
    assert cips_fast.load(path, activation="lrelu", backend="cpu").backend == "cpu"
    for options, words in (
        ({"activation": "sin"}, "activation: got 'sin', but the checkpoint's is 'lrelu'"),
        ({"activation": "relu"}, "activation: got 'relu', may be"),
        ({"integer_coords": True}, "integer_coords: got True, but the checkpoint's"),
        ({"backend": "gpu"}, "backend: got 'gpu', may be"),
        ({"device": "abacus"}, "device: got 'abacus', which cannot be used here"),
        ({"device": "cuda:77"}, "device: got 'cuda:77', which cannot be used here"),
        ({"device": "meta"}, "device: got 'meta', which holds no values"),
    ):
        with pytest.raises(ValueError, match=f"^{words}"):
            cips_fast.load(path, **options)


def test_a_run_folder_gives_its_newest_checkpoint(run):
    for source in (run, str(run)):
        assert same(cips_fast.load(source), small(3))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_latest_as_editors_and_shells_write_it(run, encoding):
    (run / "checkpoints" / "latest").write_bytes("step-000000002.safetensors\r\n".encode(encoding))
    assert same(cips_fast.load(run), small(2))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 64
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def fill_with_nan(path):
    tensors, metadata = checkpoint.read_tensors(path)
    checkpoint.write_tensors(path, {name: t * math.nan for name, t in tensors.items()}, metadata)


@pytest.mark.parametrize("damage", [flip, cut, fill_with_nan])
def test_the_newest_sound_checkpoint_is_used(run, tmp_path, capsys, damage):
    newest = run / "checkpoints" / "step-000000003.safetensors"
    damage(newest)
    with pytest.warns(UserWarning, match=r"step-000000003.safetensors .*; step-000000002.safetensors is used$"):
        assert same(cips_fast.load(run), small(2))
    assert main(["sample", str(run), "--seed", "1", "--out", str(tmp_path / "a.png")]) == 0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("warning: ")
    assert errors[0].endswith("step-000000002.safetensors is used")
    assert main(["sample", str(newest), "--seed", "1", "--out", str(tmp_path / "b.png")]) == 2
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("latest", [bytes(range(128, 228)), b"", b"../../../etc/passwd", b"step-000000009.safetensors"])
def test_a_damaged_latest_is_passed_over(run, latest):
    (run / "checkpoints" / "latest").write_bytes(latest)
    with pytest.warns(UserWarning, match="latest .*; step-000000003.safetensors is used"):
        assert same(cips_fast.load(run), small(3))


def test_a_run_without_a_sound_checkpoint(run):
    for path in (run / "checkpoints").glob("step-*"):
        cut(path)
    with pytest.raises(ValueError, match=r"can be used: .*step-000000001.safetensors is damaged") as raised:
        cips_fast.load(run)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "source: got '{}', which is not a file, must be a run folder, a checkpoint of"),
        ("empty", "source: got '{}', a folder without checkpoints, must be a run folder"),
        ("README.md", "source: '{}' is not a checkpoint: it is neither .*; must be a run folder"),
        ("nothing", "source: '{}' is empty; must be a run folder"),
        ("cut.pt", "source: '{}' cannot be read as tensors alone (it is cut off or damaged)"),
        ("other.pt", "source: '{}' cannot be used (state_dict: not a published CIPS generator, it lacks"),
        ("other.safetensors", "source: '{}' cannot be used (state_dict: not a published CIPS generator, it lacks"),
        ("nan.safetensors", "source: '{}' cannot be used (encoding.freq: 16 of 16 values are not finite)"),
        ("x" * 300, "source: '{}' cannot be read (File name too long)"),
    ],
)
@pytest.mark.parametrize("command", ["sample", "convert"])
def test_a_source_that_is_none_is_one_line(tmp_path, capsys, command, source, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("# A text\n\nof several lines")
    (tmp_path / "nothing").touch()
    published.save_published(small(align_corners=False), tmp_path / "whole.pt")
    shutil.copy(tmp_path / "whole.pt", tmp_path / "cut.pt")
    cut(tmp_path / "cut.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    nan = small()
    with torch.no_grad():
        nan.encoding.freq.fill_(math.nan)
    saved(nan, tmp_path / "nan.safetensors")
    out = tmp_path / {"sample": "a.png", "convert": "a.pt"}[command]
    assert main([command, str(tmp_path / source), "--out", str(out)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    begin, _, end = f"error: {words}".replace("{}", str(tmp_path / source)).partition(".*")
    assert errors[0].startswith(begin)
    assert end in errors[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--activation", "sin"], "error: --activation: got 'sin', but the checkpoint's is 'lrelu'"),
        (["--integer-coords"], "error: --integer-coords: got True, but the checkpoint's grid"),
        (["--device", "abacus"], "error: --device: got 'abacus', which cannot be used here"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path, capsys, options, words):
    path = saved(small(), tmp_path / "g")
    assert main(["sample", str(path), *options, "--out", str(tmp_path / "a.png")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert (len(errors), errors[0][: len(words)]) == (1, words)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_a_run_of_somebody_else(run, tmp_path, capsys):
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.stat().st_mode & 0o7777 == 0o700:
            folder.chmod(0o711)
    (run / "checkpoints" / "step-000000003.safetensors").chmod(0o600)
    os.seteuid(65534)
    try:
        assert main(["sample", str(run), "--out", "/tmp/never.png"]) == 2
    finally:
        os.seteuid(0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: source: ")
    assert line.endswith("step-000000003.safetensors' cannot be read (Permission denied)")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"w": torch.full((1, 8), torch.inf)}, "w: 8 of 8 values are not finite"),
        ({"w": torch.zeros(1, 8, dtype=torch.int32)}, "got torch.int32 in"),
        ({"w": torch.zeros(8)}, "got [8] in"),
        ({"v": torch.zeros(1, 8)}, "which is not what `project` writes: it has no tensor 'w'"),
        (b"", "which is not what `project` writes: it is empty"),
        (b"text", "which is not what `project` writes: it is not a checkpoint"),
        (b"\x10\0\0\0\0\0\0\0{", "which is not what `project` writes: it is damaged"),
        (None, "got '{}', which is not a file"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_latents_that_are_none(tmp_path, capsys, tensors, words):
    path = tmp_path / "w"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    elif tensors is not None:
        safetensors.torch.save_file(tensors, path)
    model = saved(small(), tmp_path / "g")
    assert main(["sample", str(model), "--latents", str(path), "--out", str(tmp_path / "a.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --latents: ")
    assert words.replace("{}", str(path)) in line


def test_damaged_latents_are_found(tmp_path, capsys):
    model, path = saved(small(), tmp_path / "g"), tmp_path / "w.safetensors"
    checkpoint.write_tensors(path, {"w": torch.zeros(1, 8)}, {})
    arguments = ["sample", str(model), "--latents", str(path), "--out", str(tmp_path / "a.png")]
    assert main(arguments) == 0
    flip(path)
    assert main(arguments) == 2
    assert "is damaged (its content differs from its checksum)" in capsys.readouterr().err


def test_latents_are_those_of_the_commands():
    generator = small()
    z = cips_fast.latents([3, 5, 2**64 - 1], generator)
    assert torch.equal(z, cips_fast.latents((3, 5, 2**64 - 1), 8))
    assert torch.equal(z[1:2], cips_fast.latents(5, generator))
    assert torch.equal(z[0], torch.randn(8, generator=torch.Generator().manual_seed(3)))
    assert torch.equal(cips_fast.latents(np.arange(3, 5), 8)[0], z[0])
    torch.testing.assert_close(generator.mapping(z), style_latents(generator, [3, 5, 2**64 - 1]))
    assert cips_fast.latents([], generator).shape == (0, 8)
    assert cips_fast.latents(range(2), generator.half()).device == generator.mean_latent.device
    for seeds, features in ((-1, 8), (2**64, 8), ([1.5], 8), ("1", 8), (None, 8), (1, 0), (1, "8"), (1, None)):
        with pytest.raises(ValueError, match=r"^(seeds|generator): got "):
            cips_fast.latents(seeds, features)


def test_save_image(tmp_path):
    rgb = torch.linspace(-1.2, 1.2, 2 * 3 * 4 * 5).view(2, 3, 4, 5)
    cips_fast.save_image(tmp_path / "one.png", rgb[0])
    assert np.array_equal(read(tmp_path / "one.png"), pictures.to_pixels(rgb[0]))
    cips_fast.save_image(str(tmp_path / "two.png"), rgb.double())
    assert np.array_equal(read(tmp_path / "two.png"), np.concatenate([*map(pictures.to_pixels, rgb)], 1))
    wrong = [
        ("x.bmp", rgb, "must end in one of"),
        ("x.png", rgb[0, 0], r"rgb: got shape \[4, 5\], must be \[3, H, W\]"),
        ("x.png", rgb.permute(0, 2, 3, 1), "rgb: got shape"),
        ("x.png", rgb[:0], "rgb: got shape"),
        ("x.png", rgb.to(torch.uint8), "rgb: got torch.uint8, must be a floating tensor"),
        ("x.png", rgb.numpy(), "rgb: got float32, must be a floating tensor"),
        ("x.png", rgb / 0, "rgb: 120 of 120 values are not finite"),
        (None, rgb, "path: got NoneType, must be a path"),
    ]
    for name, colours, words in wrong:
        with pytest.raises(ValueError, match=words):
            cips_fast.save_image(name and tmp_path / name, colours)
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["one.png", "two.png"]

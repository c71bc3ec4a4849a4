"""python -m cips_fast convert: every form of a generator, written whole or not at all."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cips_fast import CIPSGenerator, checkpoint, export, load_published
from cips_fast.__main__ import main

from .published_formulas import draw_state

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def ours(tmp_path):
    """A checkpoint of ours that the published code could have, too."""
    torch.manual_seed(1)
    path = tmp_path / "ours.safetensors"
    checkpoint.save(CIPSGenerator(4, width=16, style_features=8, align_corners=False), path)
    return path


@pytest.fixture
def out(tmp_path):
    """An empty folder."""
    path = tmp_path / "out"
    path.mkdir()
    return path


def convert(capsys, *arguments):
    """Exit status, the record on standard output, standard error."""
    status = main(["convert", *map(str, arguments)])
    said = capsys.readouterr()
    return status, json.loads(said.out) if said.out else None, said.err


@pytest.mark.parametrize("options", [["--activation", "sin", "--integer-coords"], []], ids=["sin", "lrelu"])
def test_a_published_checkpoint_becomes_ours_and_goes_back(capsys, tmp_path, out, options):
    activation = "sin" if options else "lrelu"
    state = draw_state("skip", 8, activation, 3, hidden=16, style=12, scale_widths=1 / 64, mapping=2)
    torch.save({"g": {}, "g_ema": state}, tmp_path / "theirs.pt")
    source, ours, back = tmp_path / "theirs.pt", out / "new" / "ours.safetensors", out / "back.pt"
    status, record, _ = convert(capsys, source, *options, "--out", ours, "--check")
    assert (status, record["largest_difference"]) == (0, 0)
    assert record == {"file": str(ours), "bytes": ours.stat().st_size, "check": "ok", "largest_difference": 0}
    read = checkpoint.load(ours)
    assert (read.activation, read.integer_coords) == (activation, bool(options))
    assert convert(capsys, ours, "--out", back, "--check")[1]["largest_difference"] == 0
    again = torch.load(back)["g_ema"]
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())


def test_noise_goes_with_a_checkpoint(capsys, ours, out):
    generator = checkpoint.load(ours)
    generator.config["noise"] = generator.noise = True
    generator.noise_strength.fill_(0.3)
    checkpoint.save(generator, ours)
    status, record, _ = convert(capsys, ours, "--out", out / "noisy.pt", "--check")
    assert (status, record["largest_difference"]) == (0, 0)
    assert load_published(out / "noisy.pt").noise
    status, _, error = convert(capsys, ours, "--out", out / "noisy.pt2")
    assert (status, error.splitlines()) == (2, [error.strip()])
    assert error.startswith("error: --out: got ")
    assert "which cannot hold this generator (noise: got True, must be False" in error


def test_a_network_becomes_a_program(capsys, ours, out):
    inputs = ("--per-layer", "--coords-per-image")
    status, record, _ = convert(capsys, ours, "--out", out / "g.pt2", "--check", *inputs)
    assert status == 0
    assert 0 <= record["largest_difference"] < 5e-6
    program = torch.export.load(out / "g.pt2").module()
    assert program(torch.randn(2, 3, 8), torch.rand(2, 7, 2)).shape == (2, 7, 3)


def test_a_network_becomes_an_onnx_file(capsys, ours, out, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"no {package}")
    monkeypatch.setattr(
        export.export_onnx, "__kwdefaults__", export.export_onnx.__kwdefaults__ | {"external_data_from": 0}
    )
    status, record, error = convert(capsys, ours, "--out", out / "g.ONNX", "--check")
    assert (status, error) == (0, "")
    assert 0 < record["largest_difference"] < 5e-6
    files = {path.name: path.stat().st_size for path in out.iterdir()}
    assert files.keys() == {"g.ONNX", "g.ONNX.data"}
    assert record["bytes"] == sum(files.values())
    generator = checkpoint.load(ours)
    assert export.largest_difference(generator, export.open_onnx(out / "g.ONNX")) == record["largest_difference"]


@pytest.mark.parametrize("difference", [2e-6, math.nan])
def test_nothing_is_written_where_the_check_fails(capsys, ours, out, monkeypatch, difference):
    (out / "g.pt").write_bytes(b"before")
    monkeypatch.setattr(export, "largest_difference", lambda *given, **inputs: difference)
    status, record, _ = convert(capsys, ours, "--out", out / "g.pt", "--check")
    assert (status, record["check"], record["written"]) == (1, "differs", False)
    assert [path.read_bytes() for path in out.iterdir()] == [b"before"]


def test_a_failure_on_the_way_leaves_what_was_there(capsys, ours, out, monkeypatch):
    (out / "g.pt").write_bytes(b"before")

    def fail(generator, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cips_fast.published.save_published", fail)
    status, _, error = convert(capsys, ours, "--out", out / "g.pt")
    assert (status, "No space left on device" in error) == (2, True)
    assert [path.read_bytes() for path in out.iterdir()] == [b"before"]


@pytest.mark.skipif(sys.platform == "win32", reason="the size of files cannot be limited there")
@pytest.mark.exhaustive("pt2", "safetensors")
@pytest.mark.parametrize("kind", ["safetensors", "pt", "pt2", "onnx"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, ours, out, kind):
    """In a process of its own, since PyTorch's own writer ends that where it fails."""
    if kind == "onnx":
        for package in ("onnx", "onnxscript"):
            pytest.importorskip(package, reason=f"no {package}")
    target = out / f"g.{kind}"
    target.write_bytes(b"before")
    code = (
        "import resource, sys; from cips_fast.__main__ import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "convert", str(ours), "--out", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: --out: got {str(target)!r}, which cannot be written (File too large)\n"
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [(target.name, b"before")]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("kind", ["safetensors", "pt", "pt2"])
def test_a_file_has_the_mode_that_the_umask_says(capsys, ours, out, kind):
    assert convert(capsys, ours, "--out", out / f"g.{kind}")[0] == 0
    (out / "other").touch()
    assert (out / f"g.{kind}").stat().st_mode == (out / "other").stat().st_mode


def test_what_cannot_be_converted(capsys, tmp_path, ours, out):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    (tmp_path / "cut.safetensors").write_bytes(ours.read_bytes()[:500])
    checkpoint.save(CIPSGenerator(4, width=8, style_features=8), tmp_path / "aligned.safetensors")
    (out / "folder.pt").mkdir()
    (tmp_path / "file").touch()
    cases = [
        ([ours, "--out", out / "g.png"], "--out: got .*g.png', must end in one of .safetensors, .pt, .pt2, .onnx"),
        ([ours, "--out", out / "g"], "--out: got .*must end in"),
        ([tmp_path / "none.pt", "--out", out / "g.pt"], "source: .*none.pt', which is not a file"),
        ([tmp_path / "other.pt", "--out", out / "g.pt"], "source: .*not a published CIPS generator"),
        ([tmp_path / "cut.safetensors", "--out", out / "g.pt"], "source: .*is damaged"),
        (
            [tmp_path / "aligned.safetensors", "--out", out / "g.pt"],
            r"--out: got '.*/g.pt', which cannot hold this generator \(align_corners: got True, must be False in a "
            "published checkpoint; it is True in the generators that this library trains",
        ),
        ([ours, "--out", out / "folder.pt"], "--out: got .*folder.pt', which cannot be written"),
        ([ours, "--out", tmp_path / "file" / "g.pt"], "--out: got .*g.pt', which cannot be written"),
        (
            [ours, "--out", out / "g.pt", "--per-layer"],
            "--per-layer: needs an --out that ends in .pt2 or .onnx, got 'g.pt'",
        ),
        ([ours, "--out", out / "g.pt2", "--opset", "18"], "--opset: needs an --out that ends in .onnx, got 'g.pt2'"),
        ([ours, "--out", out / "g.onnx", "--opset", "5"], "--opset: got 5, must be 18 to|--out: ONNX needs"),
    ]
    for arguments, words in cases:
        status, record, error = convert(capsys, *arguments)
        assert (status, record, len(error.splitlines())) == (2, None, 1), (arguments, error)
        assert re.search(words, error), error
    assert [path.name for path in out.iterdir()] == ["folder.pt"]


def test_a_source_may_be_replaced_by_itself(capsys, ours):
    before = ours.read_bytes()
    assert convert(capsys, ours, "--out", ours)[0] == 0
    assert ours.read_bytes() == before

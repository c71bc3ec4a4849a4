"""python -m cips_fast foveate: the pictures that it writes, and what it says of them."""

import json

import numpy as np
import pytest
import torch

from cips_fast import CIPSGenerator, render
from cips_fast.__main__ import main
from cips_fast.commands._options import style_latents
from cips_fast.files import pictures
from cips_fast.foveation import sample_pixels

from .pictures import read


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return CIPSGenerator(size=16, width=16, style_features=16, embedding_size=4).eval().requires_grad_(False)


def said(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_picture_its_mask_and_the_full_one(generator, saved, tmp_path, capsys):
    out = tmp_path / "made" / "gaze.png"
    options = ["--seed", "3", "--size", "120x90", "--gaze=-0.5,0.2", "--budget", "0.2", "--compare", "--out", str(out)]
    assert main(["foveate", saved, *options]) == 0
    w = style_latents(generator, [3])[0]
    wanted = pictures.to_pixels(render.image(generator, w, 90, 120))
    image, mask, full = (read(out.with_name(f"gaze{part}.png")) for part in ("", "-mask", "-full"))
    computed = np.zeros(90 * 120, bool)
    computed[sample_pixels(90, 120, (-0.5, 0.2), 0.2)] = True
    computed = computed.reshape(90, 120)
    assert np.array_equal(mask, np.repeat(computed[..., None] * np.uint8(255), 3, -1))
    assert np.array_equal(full, wanted)
    assert np.array_equal(image[computed], wanted[computed])
    (record,) = said(capsys)
    assert (record["file"], record["pixels"], record["of"]) == (str(out), 2160, 10800)
    assert record["seconds"] > 0
    # Clipping and rounding to 8 bits may only change it by little.
    rounded = np.sqrt(np.mean((image / 127.5 - full / 127.5) ** 2))
    assert record["rmse"] == pytest.approx(rounded, rel=0.3)
    assert record["psnr"] == pytest.approx(20 * np.log10(2 / record["rmse"]), abs=0.01)
    assert record["gaze_psnr"] > record["psnr"] > record["periphery_psnr"]


def test_passes_from_coarse_to_fine(generator, saved, tmp_path, capsys):
    out, folder = tmp_path / "gaze.jpg", tmp_path / "new" / "passes"
    assert main(["foveate", saved, "--size", "40x24", "--progressive", str(folder), "--out", str(out)]) == 0
    *passes, record = said(capsys)
    assert [one["file"] for one in passes] == [str(folder / f"pass-{n}-every-{64 >> n}.png") for n in range(7)]
    assert len(list(folder.iterdir())) == 7
    assert [one["pixels"] for one in passes] == [1, 2, 6, 15, 60, 240, 960]
    assert "psnr" not in record
    assert not (tmp_path / "gaze-full.png").exists()
    w = style_latents(generator, [0])[0]
    assert np.array_equal(read(passes[-1]["file"]), pictures.to_pixels(render.image(generator, w, 24, 40)))


def test_an_error_without_a_number_is_null(saved, tmp_path, capsys):
    options = ["--size", "8", "--budget", "1", "--compare", "--out", str(tmp_path / "all.png")]
    assert main(["foveate", saved, *options]) == 0
    (record,) = said(capsys)
    assert (record["psnr"], record["rmse"]) == (None, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gaze", "2,0"], "--gaze: got (2.0, 0.0), must be two numbers from -1 to 1"),
        (["--gaze", "2"], "got '2', must be 2 numbers"),
        (["--budget", "0"], "--budget: got 0.0, must be more than 0 and at most 1"),
        (["--budget", "1e-9"], "--budget: got 1e-09, which is less than one pixel"),
        (["--falloff", "-1"], "--falloff: got -1.0, must be more than 0"),
        (["--seeds", "0-1"], "--seeds: got 2 of them, must be one"),
        (["--out", "picture.bmp"], "--out: got 'picture.bmp', must end in one of .png"),
        (["--out", "{folder}/tiny.safetensors/x.png"], "which cannot be written"),
        (
            ["--progressive", "{folder}/tiny.safetensors"],
            "--progressive: got '{folder}/tiny.safetensors', which ",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line(saved, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    try:
        status = main(["foveate", saved, *arguments])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert words.format(folder=tmp_path) in error
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]

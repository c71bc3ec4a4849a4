"""python -m cips_fast project: the folder that it writes, and that other commands take what it found."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from cips_fast import CIPSGenerator, render
from cips_fast.__main__ import main
from cips_fast.commands._options import style_latents
from cips_fast.commands.project import read_target
from cips_fast.files import pictures

from .pictures import read

QUICK = ["--steps", "30"]


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = CIPSGenerator(size=16, width=32, embedding_size=8, style_features=32, mapping_layers=2).eval()
    return generator.requires_grad_(False)


@pytest.fixture
def picture(generator, tmp_path):
    """An image of the generator's own, as far as 8 bits hold it."""
    path = tmp_path / "picture.png"
    pictures.save(path, pictures.to_pixels(render.image(generator, style_latents(generator, [101])[0], 16, 16)))
    return str(path)


@pytest.mark.parametrize(("space", "shape"), [("w", (1, 32)), ("w+", (1, 7, 32))])
def test_the_folder(generator, saved, picture, tmp_path, capsys, space, shape):
    out = tmp_path / "made" / "found"
    assert main(["project", saved, picture, "--space", space, "--steps", "100", "--out", str(out)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert sorted(path.name for path in out.iterdir()) == ["losses.jsonl", "projected.png", "w.safetensors"]
    w = safetensors.torch.load_file(out / "w.safetensors")["w"]
    assert w.shape == shape
    target, known, found = np.split(read(out / "projected.png"), 3, 1)
    assert np.array_equal(target, read(picture))
    assert np.array_equal(known, target)
    assert np.array_equal(found, pictures.to_pixels(render.image(generator, w[0], 16, 16)))
    error = np.square(found.astype(float) - target).mean()
    assert record["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
    assert record["psnr"] > 12
    assert "psnr_hidden" not in record
    losses = [json.loads(line) for line in (out / "losses.jsonl").read_text().splitlines()]
    assert [one["step"] for one in losses] == list(range(100))
    assert losses[-1]["pixel"] < 0.5 * losses[0]["pixel"]


def test_other_commands_take_what_was_found(generator, saved, picture, tmp_path, capsys):
    files = [str(tmp_path / space / "w.safetensors") for space in ("w", "w+")]
    for space in ("w", "w+"):
        assert main(["project", saved, picture, "--space", space, *QUICK, "--out", str(tmp_path / space)]) == 0
    latents = [safetensors.torch.load_file(file)["w"][0] for file in files]
    images = [pictures.to_pixels(render.image(generator, w, 20, 30)) for w in latents]
    size = ["--size", "30x20"]
    capsys.readouterr()
    assert main(["sample", saved, "--latents", *files, *size, "--out", str(tmp_path / "sheet.png")]) == 0
    assert np.array_equal(read(tmp_path / "sheet.png"), pictures.sheet(images, 2))
    assert json.loads(capsys.readouterr().out)["latents"] == files
    assert main(["sample", saved, "--latents", *files, *size, "--out", str(tmp_path / "folder")]) == 0
    assert np.array_equal(read(tmp_path / "folder" / "latent-0001.png"), images[1])
    gaze = ["--budget", "1", "--out", str(tmp_path / "gaze.png")]
    assert main(["foveate", saved, "--latents", files[1], *size, *gaze]) == 0
    assert np.array_equal(read(tmp_path / "gaze.png"), images[1])
    walk = ["--seconds", "1", "--fps", "3", "--kind", "linear", "--out", str(tmp_path / "walk.webp")]
    capsys.readouterr()
    assert main(["interpolate", saved, "--latents", *files, *size, *walk]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["latents"], record["frames"]) == (files, 3)


def test_a_mask_and_a_share_of_what_it_shows(saved, picture, tmp_path, capsys):
    """An uncovered pixel is one whose whole area the mask shows, however large the mask's own pixels are."""
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    options = ["--mask", str(tmp_path / "mask.png"), "--size", "8", "--known", "0.25", *QUICK]
    assert main(["project", saved, picture, *options, "--out", str(tmp_path / "found")]) == 0
    _, known, _ = np.split(read(tmp_path / "found" / "projected.png"), 3, 1)
    shown = known.any(-1)
    assert shown.sum() == 8  # a quarter of 4 columns of 8
    assert not shown[:, 4:].any()
    record = json.loads(capsys.readouterr().out)
    assert record["psnr"] > record["psnr_hidden"]


def test_the_centre_of_a_wide_transparent_picture(saved, tmp_path):
    image = np.zeros((16, 48, 4), np.uint8)
    image[:, 16:32] = (255, 0, 0, 255)
    image[:8] = 0  # transparent, on white
    Image.fromarray(image).save(tmp_path / "wide.png")
    assert main(["project", saved, str(tmp_path / "wide.png"), *QUICK, "--out", str(tmp_path / "found")]) == 0
    target, _, _ = np.split(read(tmp_path / "found" / "projected.png"), 3, 1)
    assert np.array_equal(np.unique(target[:8].reshape(-1, 3), axis=0), [[255, 255, 255]])
    assert np.array_equal(np.unique(target[8:].reshape(-1, 3), axis=0), [[255, 0, 0]])


def grey_float(pixels):
    values = np.asarray(pixels).astype(np.float32) / 255
    values[0, 0] = np.inf
    return values


# Files that training reads: how a picture is written, from RGB pixels, and the pixels that are right.
KINDS = {
    "16-bit": ("png", lambda p: Image.fromarray(p[..., 0].astype(np.uint16) * 257), {}, lambda p: p[..., :1]),
    "float": ("tiff", lambda p: Image.fromarray(grey_float(p[..., 0])), {}, None),
    "damaged-exif": ("png", Image.fromarray, {"exif": b"garbage!"}, lambda p: p),
    "transparent-16-bit": (
        "png",
        lambda p: Image.fromarray(np.full(p.shape[:2], 0x1000, np.uint16)),
        {"transparency": 0x1000},
        lambda p: np.full_like(p, 255),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_on_can_be_projected(kind, picture, tmp_path):
    pixels = read(picture)
    ending, image_of, options, want = KINDS[kind]
    image_of(pixels).save(tmp_path / f"a.{ending}", **options)
    target, known = read_target(tmp_path / f"a.{ending}", None, 16, 16)
    got = pictures.to_pixels(target)
    if want is None:  # the infinite pixel has the median of the others
        assert np.array_equal(got[1:], np.broadcast_to(pixels[1:, :, :1], (15, 16, 3)))
    else:
        assert np.array_equal(got, np.broadcast_to(want(pixels), pixels.shape))
    assert known.all()


@pytest.mark.parametrize("kind", ["8-bit", "16-bit", "float", "damaged-exif"])
def test_a_mask_of_any_kind(kind, picture, tmp_path):
    shown = np.zeros((16, 16), bool)
    shown[:, 3:9] = True
    masks = {
        "8-bit": (shown * np.uint8(255), "png", {}),
        "16-bit": (shown * np.uint16(65535), "png", {}),
        "float": (shown * np.float32(1), "tiff", {}),
        "damaged-exif": (shown * np.uint8(255), "png", {"exif": b"garbage!"}),
    }
    pixels, ending, options = masks[kind]
    Image.fromarray(pixels).save(tmp_path / f"mask.{ending}", **options)
    _, known = read_target(Path(picture), tmp_path / f"mask.{ending}", 16, 16)
    assert np.array_equal(known.numpy(), shown)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{folder}/nothing.png"], "image: got "),
        (["{folder}/tiny.safetensors"], "which cannot be read as a picture"),
        (["{picture}", "--mask", "{folder}/small.png"], "of 4x4 pixels, must have the image's 16x16"),
        (["{picture}", "--mask", "{folder}/black.png"], "which leaves no known pixel at 16x16"),
        (["{picture}", "--known", "0"], "--known: got 0.0, must be more than 0"),
        (["{picture}", "--steps", "0"], "--steps: got 0, must be at least 1"),
        (["{picture}", "--pixels=-4"], "--pixels: got -4, must be at least 1"),
        (["{picture}", "--learning-rate", "0"], "--learning-rate: got 0.0, must be more than 0"),
        (["{picture}", "--learning-rate", "1e30"], "--learning-rate: the loss is "),
        (
            ["{picture}", "--perceptual", "1"],
            "--size: got 16x16 pixels, must be at least 32x32 for a perceptual distance",
        ),
        (["{picture}", "--region=0,0,0,1"], "--region: got (0.0, 0.0, 0.0, 1.0)"),
        (["{picture}", "--out", "{folder}/tiny.safetensors/found"], "which cannot be written"),
    ],
)
def test_bad_input_is_one_line(saved, picture, tmp_path, capsys, arguments, words):
    for name, pixels in (("small", np.full((4, 4), 255, np.uint8)), ("black", np.zeros((16, 16), np.uint8))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    arguments = [argument.format(folder=tmp_path, picture=picture) for argument in arguments]
    assert main(["project", saved, "--out", str(tmp_path / "found"), *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert words in errors[-1]
    assert errors[-1].startswith("error: ")
    assert not (tmp_path / "found" / "w.safetensors").exists()


@pytest.mark.skipif(os.name != "posix", reason="pipes need POSIX")
@pytest.mark.parametrize("option", ["image", "--mask"])
def test_a_pipe_is_no_picture_and_does_not_hang(saved, picture, tmp_path, capsys, option):
    os.mkfifo(tmp_path / "pipe.png")
    pipe = str(tmp_path / "pipe.png")
    arguments = [pipe] if option == "image" else [picture, "--mask", pipe]
    assert main(["project", saved, *arguments, "--out", str(tmp_path / "found")]) == 2
    error = f"error: {option}: got {pipe!r}, which cannot be read as a picture (it is not a file)"
    assert capsys.readouterr().err.splitlines() == [error]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (None, "which is not what `project` writes"),
        ({"v": torch.zeros(1, 32)}, "it has no tensor 'w'"),
        ({"w": torch.zeros(1, 64)}, "must be [1, 32] or [1, 7, 32]; it may be of another generator"),
    ],
)
def test_latents_that_are_none(saved, tmp_path, capsys, tensors, words):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tensors, path) if tensors else path.write_bytes(b"no tensors")
    assert main(["sample", saved, "--latents", str(path), "--out", str(tmp_path / "x.png")]) == 2
    assert words in capsys.readouterr().err

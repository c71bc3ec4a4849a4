"""python -m cips_fast: what commands write, and how they answer bad input."""

import json

import numpy as np
import pytest
import tifffile
import torch

from cips_fast import CIPSGenerator, checkpoint, render
from cips_fast.__main__ import command_names, main
from cips_fast.commands._options import parse_seeds, style_latents
from cips_fast.files import pictures

from .pictures import read


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    generator = CIPSGenerator(size=8, width=16, style_features=16).eval().requires_grad_(False)
    generator.mean_latent.normal_()
    return generator


def wanted(generator, seed, height, width, region=(-1, -1, 1, 1), truncation=1.0):
    w = style_latents(generator, [seed], truncation)[0]
    return pictures.to_pixels(render.image(generator, w, height, width, region))


def test_every_command_has_a_help(capsys):
    assert "sample" in command_names()
    for name in command_names():
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: python -m cips_fast {name}")


def test_seeds_are_latents_of_their_own(generator):
    assert parse_seeds("0-2,7") == [0, 1, 2, 7]
    together, alone = style_latents(generator, [3, 5]), style_latents(generator, [5])
    torch.testing.assert_close(together[1:], alone)
    torch.testing.assert_close(style_latents(generator, [3, 5], 0), generator.mean_latent.expand(2, -1))


def test_a_sheet_of_seeds(generator, saved, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    view = ["--size", "20x10", "--region=-0.5,-1,0.5,0", "--truncation", "0.7", "--columns", "2"]
    assert main(["sample", saved, "--seeds", "4,1,2", *view, "--out", str(out)]) == 0
    images = [wanted(generator, seed, 10, 20, (-0.5, -1, 0.5, 0), 0.7) for seed in (4, 1, 2)]
    assert np.array_equal(read(out), pictures.sheet(images, 2))
    assert json.loads(capsys.readouterr().out) == {"file": str(out), "width": 40, "height": 20, "seeds": [4, 1, 2]}


def test_a_run_folder_and_a_file_for_each_seed(generator, saved, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (tmp_path / "tiny.safetensors").rename(checkpoints / "step-000000001.safetensors")
    (checkpoints / "latest").write_text("step-000000001.safetensors")
    out = tmp_path / "images"
    assert main(["sample", str(tmp_path / "run"), "--seeds", "0-1", "--out", str(out), "--format", "tif"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["seed-0000.tif", "seed-0001.tif"]
    assert np.array_equal(read(out / "seed-0001.tif"), wanted(generator, 1, 8, 8))


def test_an_interrupted_large_image_goes_on_where_it_stopped(generator, saved, tmp_path, monkeypatch):
    out, rendered = tmp_path / "large.tif", []
    tile = render.Renderer.tile

    def interrupted_at(count):
        def render_tile(self, rows, columns):
            if len(rendered) == count:
                raise KeyboardInterrupt
            rendered.append((rows.start, columns.start))
            return tile(self, rows, columns)

        monkeypatch.setattr(render.Renderer, "tile", render_tile)
        return main(["sample", saved, "--seed", "3", "--size", "1100x600", "--out", str(out)])

    assert interrupted_at(2) == 130
    assert not out.exists()
    assert interrupted_at(None) == 0
    assert len(rendered) == len(set(rendered)) == 6
    whole = wanted(generator, 3, 600, 1100)
    with tifffile.TiffFile(out) as file:
        assert file.is_bigtiff
        assert [level.shape for level in file.series[0].levels] == [(600, 1100, 3), (300, 550, 3), (150, 275, 3)]
        assert np.array_equal(file.asarray(), whole)


def test_a_bicubic_embedding_changes_what_lies_between_cells(generator, saved, tmp_path):
    outs = [tmp_path / f"{kind}.png" for kind in ("bilinear", "bicubic")]
    for out in outs:
        assert main(["sample", saved, "--seed", "0", "--size", "50", "--embedding", out.stem, "--out", str(out)]) == 0
    bilinear, bicubic = (read(out).astype(int) for out in outs)
    on_cells = np.abs(bilinear - bicubic)[::7, ::7]  # 7 pixels from one of the 8 cells to the next
    assert on_cells.max() <= 1
    assert np.abs(bilinear - bicubic).max() > 50
    assert np.array_equal(bilinear, wanted(generator, 0, 50, 50))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "0x4"], "got '0x4', must be WIDTHxHEIGHT"),
        (["--seeds", "5-3"], "got '5-3', must be numbers and ranges"),
        (["--region=0,0,1"], "got '0,0,1', must be 4 numbers"),
        (["--region=0,0,0,1"], "--region: got (0.0, 0.0, 0.0, 1.0)"),
        (["--out", "picture.bmp"], "--out: got 'picture.bmp', must end in one of .png"),
        (["--out", "{folder}/tiny.safetensors/x.png"], "which cannot be written"),
        (["--size", "100000", "--out", "{folder}/x.png"], "--size: got 10000000000 pixels in one PNG"),
        (["--size", "100000x1", "--out", "{folder}/x.webp"], "WEBP holds 16383 a side"),
        (["--columns", "0"], "--columns: got 0, must be at least 1"),
        (["--repeat", "3"], "got '3', must be ACROSSxDOWN"),
        (["--repeat", "0x2"], "got '0x2', must be ACROSSxDOWN"),
        (["--repeat", "1x1025"], "got '1x1025', must be ACROSSxDOWN"),
        (["--repeat", "3x1"], "--repeat: got 3 across, must be 1: x does not wrap on a plane"),
        (["--repeat", "1x2"], "--repeat: got 2 down, must be 1: y does not wrap on a plane"),
        (["--device", "cuda:77"], "--device: got 'cuda:77', which cannot be used here"),
        (["--device", "abacus"], "--device: got 'abacus', which cannot be used here"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line(saved, tmp_path, capsys, arguments, words):
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    try:
        status = main(["sample", saved, "--seed", "0", *arguments])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert words in error
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]


@pytest.mark.parametrize("source", ["nowhere", "empty", "damaged.safetensors", "damaged.pt"])
def test_a_source_that_is_none(tmp_path, capsys, source):
    (tmp_path / "empty").mkdir()
    (tmp_path / source).write_bytes(b"no tensors") if source.startswith("damaged") else None
    assert main(["sample", str(tmp_path / source)]) == 2
    assert capsys.readouterr().err.startswith("error: source: ")


def test_panoramas_have_no_seam(saved, tmp_path, capsys):
    out = tmp_path / "panorama.png"
    assert main(["panorama", saved, "--seeds", "0-3", "--out", str(out)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert 0 < record.pop("step") < 4 * record.pop("beside")
    assert record == {"file": str(out), "width": 32, "height": 8, "seam": 0.0}
    assert main(["panorama", saved, "--seeds", "0-2", "--out", str(out)]) == 2
    assert "error: --seeds: got 3, must be an even number of seeds, such as 4 of them" in capsys.readouterr().err

    cylinder = CIPSGenerator(size=8, width=16, style_features=16, geometry="cylinder").eval()
    checkpoint.save(cylinder, tmp_path / "cylinder.safetensors")
    arguments = ["panorama", str(tmp_path / "cylinder.safetensors"), "--out", str(out)]
    assert main([*arguments, "--seeds", "5,6", "--size", "50x20"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["width"], record["height"], record["seam"]) for record in records] == [(50, 20, 0.0)] * 2
    assert np.array_equal(read(tmp_path / "panorama-0006.png"), wanted(cylinder, 6, 20, 50))


def test_images_are_repeated_along_axes_that_wrap(tmp_path, capsys):
    cylinder = CIPSGenerator(size=8, width=16, style_features=16, geometry="cylinder").eval()
    checkpoint.save(cylinder, tmp_path / "cylinder.safetensors")
    source, out = str(tmp_path / "cylinder.safetensors"), tmp_path / "repeated.png"
    assert main(["sample", source, "--seed", "5", "--size", "20x10", "--repeat", "3x1", "--out", str(out)]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(out), "width": 60, "height": 10, "seeds": [5]}
    assert np.array_equal(read(out), np.tile(wanted(cylinder, 5, 10, 20), (1, 3, 1)))
    assert main(["sample", source, "--seed", "5,6", "--size", "20x10", "--repeat", "2x1", "--out", str(out)]) == 0
    images = [np.tile(wanted(cylinder, seed, 10, 20), (1, 2, 1)) for seed in (5, 6)]
    assert np.array_equal(read(out), pictures.sheet(images, 2))
    capsys.readouterr()
    for arguments, words in (
        (["--repeat", "1x2"], "--repeat: got 2 down, must be 1: y does not wrap on a cylinder"),
        (["--repeat", "2x1", "--region", "0,0,1,1"], "--repeat: got 2 across, must be 1: the region is not a whole"),
        (["--repeat", "1024x1", "--size", "20000x4"], "--repeat: got 1024x1, which makes a side of 20480000 pixels"),
    ):
        assert main(["sample", source, "--seed", "5", *arguments, "--out", str(out)]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert words in error

"""The command `interpolate`: every frame is what it says, and what does not go together is refused in one line."""

import json
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cips_fast import CIPSGenerator, checkpoint, grids, render, walks
from cips_fast.__main__ import main
from cips_fast.commands._options import latents, style_latents
from cips_fast.files import pictures
from cips_fast.files.movie import Movie

SIZE = 16


def small_generator(geometry="plane"):
    torch.manual_seed(0)
    options = {"width": 32, "style_features": 32, "embedding_size": 8, "mapping_layers": 2, "geometry": geometry}
    generator = CIPSGenerator(size=SIZE, max_frequency=0.5, **options).eval()
    generator.mean_latent.copy_(torch.randn(32) / 4)
    return generator


@pytest.fixture(scope="module", params=["plane"])
def source(request, tmp_path_factory):
    """A checkpoint, and the generator in it."""
    path = tmp_path_factory.mktemp("source") / "generator.safetensors"
    checkpoint.save(small_generator(request.param), path)
    return path, checkpoint.load(path)


@pytest.fixture
def shown(monkeypatch):
    """The frames that a movie is given."""
    frames, add = [], Movie.add
    monkeypatch.setattr(Movie, "add", lambda movie, frame: (frames.append(frame), add(movie, frame)))
    return frames


def interpolate(source, out, *options):
    return main(["interpolate", str(source), "--device", "cpu", "--out", str(out), *map(str, options)])


def rendered(generator, w, region=grids.WHOLE, height=SIZE, width=SIZE):
    return pictures.to_pixels(render.image(generator, w, height, width, region))


def assert_same(frame, want):
    """Up to colours that rounding decides."""
    assert frame.shape == want.shape
    assert np.abs(frame.astype(int) - want).max() <= 1
    assert (frame != want).mean() < 0.01


@pytest.mark.parametrize("kind", walks.KINDS)
def test_a_loop_passes_the_seeds_and_is_told_of(source, shown, tmp_path, capsys, kind):
    path, generator = source
    out = tmp_path / "made" / "walk.gif"
    options = ("--seeds", "3,5-6", "--kind", kind, "--loop", "--seconds", 0.5, "--fps", 18, "--truncation", 0.7)
    assert interpolate(path, out, *options, "--size", "24x20") == 0
    assert len(shown) == 9
    for frame, w in zip(shown[::3], style_latents(generator, (3, 5, 6), 0.7), strict=True):
        assert_same(frame, rendered(generator, w, height=20, width=24))
    assert (shown[-1] != shown[0]).any()
    record = json.loads(capsys.readouterr().out)
    assert record == {"file": str(out), "width": 24, "height": 20, "seeds": [3, 5, 6], "frames": 9, "fps": 18}
    with Image.open(out) as image:
        assert (image.n_frames, image.size) == (9, (24, 20))


def test_great_circles_lie_in_z_and_lines_in_w(source, shown, tmp_path):
    path, generator = source
    options = ("--seeds", "0-1", "--seconds", 1, "--fps", 3)
    for kind in ("linear", "spherical"):
        assert interpolate(path, tmp_path / "walk.gif", *options, "--kind", kind) == 0
    z = walks.slerp(*latents((0, 1), generator), torch.tensor([0.5]))
    assert_same(shown[1], rendered(generator, style_latents(generator, (0, 1)).mean(0)))
    assert_same(shown[4], rendered(generator, generator.mapping(z[None])[0].detach()))
    assert np.abs(shown[1].astype(int) - shown[4]).mean() > 2


@pytest.mark.parametrize("embedding", ["bilinear", "bicubic"])
def test_a_zoom_leads_where_it_says(source, shown, tmp_path, embedding):
    path, generator = source
    options = ("--zoom", 16, "--center=-0.25,0.5", "--seconds", 1, "--fps", 5, "--embedding", embedding)
    assert interpolate(path, tmp_path / "zoom.gif", *options) == 0
    if embedding == "bicubic":
        generator = render.with_bicubic_embedding(generator, SIZE * 16 // 8)
    w = style_latents(generator, [0])[0]
    assert_same(shown[0], rendered(generator, w))
    assert_same(shown[-1], rendered(generator, w, (-0.3125, 0.4375, -0.1875, 0.5625)))
    # Halfway in time is halfway in magnification, and there in place as far as the sides have shrunk.
    assert_same(shown[2], rendered(generator, w, (-0.45, 0.15, 0.05, 0.65)))


@pytest.mark.parametrize("source", ["cylinder"], indirect=True)
def test_a_turn_of_a_panorama_has_no_seam(source, shown, tmp_path):
    assert interpolate(source[0], tmp_path / "turn.gif", "--pan", "2,0", "--loop", "--seconds", 1, "--fps", 8) == 0
    assert len(shown) == 8
    assert shown[0].shape == (SIZE, 2 * SIZE, 3)
    for before, after in zip(shown, [*shown[1:], shown[0]], strict=True):
        assert_same(after, np.roll(before, -4, 1))


@pytest.mark.parametrize("source", ["torus"], indirect=True)
def test_a_turn_of_a_torus_may_go_down(source, shown, tmp_path):
    assert interpolate(source[0], tmp_path / "turn.gif", "--pan", "0,2", "--loop", "--seconds", 1, "--fps", 8) == 0
    assert shown[0].shape == (SIZE, SIZE, 3)
    for before, after in zip(shown, [*shown[1:], shown[0]], strict=True):
        assert_same(after, np.roll(before, -2, 0))


def test_a_region_has_the_same_bicubic_embedding_as_in_sample(source, shown, tmp_path):
    """It is as fine as the region's magnification asks for, here 20 times."""
    path, generator = source
    view = ("--region=0,0,0.1,0.1", "--embedding", "bicubic")
    assert interpolate(path, tmp_path / "walk.gif", *view, "--seeds", "3,5", "--seconds", 1, "--fps", 2) == 0
    assert main(["sample", str(path), *view, "--seed", "3", "--device", "cpu", "--out", str(tmp_path / "3.png")]) == 0
    with Image.open(tmp_path / "3.png") as sample:
        assert_same(shown[0], np.asarray(sample))
    w = style_latents(generator, [3])[0]
    coarse = rendered(render.with_bicubic_embedding(generator, SIZE // 8), w, (0, 0, 0.1, 0.1))
    assert np.abs(shown[0].astype(int) - coarse).max() > 1


def test_several_seeds_change_while_the_camera_moves(source, shown, tmp_path):
    path, generator = source
    options = ("--pan", "0.5,0", "--region=-1,-1,0.5,0.5", "--seeds", "4,9", "--seconds", 1, "--fps", 2)
    assert interpolate(path, tmp_path / "pan.gif", *options) == 0
    w = style_latents(generator, (4, 9))
    assert_same(shown[0], rendered(generator, w[0], (-1, -1, 0.5, 0.5)))
    assert_same(shown[1], rendered(generator, w[1], (-0.5, -1, 1, 0.5)))


def test_a_mixing_matrix_shows_its_sources_at_the_edges(source, tmp_path, capsys):
    path, generator = source
    out = tmp_path / "mix.png"
    assert interpolate(path, out, "--seeds", "1,2", "--mix", "5-7", "--crossover", 3, "--size", 20) == 0
    rows, columns = style_latents(generator, (1, 2)), style_latents(generator, (5, 6, 7))
    with Image.open(out) as image:
        table = np.asarray(image)
    assert table.shape == (3 * 20 + 3 * 2, 4 * 20 + 4 * 2, 3)
    assert (table[:20, :20] == 255).all()

    def cell(row, column):
        top, left = (22 * index + 2 * (index > 0) for index in (row, column))
        assert (table[:, left - 2 : left] == 255).all()
        return table[top : top + 20, left : left + 20]

    for row, early in enumerate(rows):
        assert_same(cell(row + 1, 0), rendered(generator, early, height=20, width=20))
        for column, late in enumerate(columns):
            mixed = torch.cat([early.expand(3, -1), late.expand(generator.num_layers - 3, -1)])
            assert_same(cell(row + 1, column + 1), rendered(generator, mixed[None], height=20, width=20))
    for column, late in enumerate(columns):
        assert_same(cell(0, column + 1), rendered(generator, late, height=20, width=20))
    record = json.loads(capsys.readouterr().out)
    assert record == {"file": str(out), "width": 88, "height": 66, "seeds": [1, 2], "mix": [5, 6, 7], "crossover": 3}


def test_what_was_made_before_an_interruption_is_kept(source, tmp_path, capsys, monkeypatch):
    whole, left = render.Renderer.image, iter(range(3))

    def image(renderer):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(renderer)

    monkeypatch.setattr(render.Renderer, "image", image)
    assert interpolate(source[0], tmp_path / "walk.gif", "--seconds", 1, "--fps", 10) == 130
    assert f"stopped: 3 of 10 frames are in {tmp_path / 'walk.partial.gif'}" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["walk.partial.gif"]
    with Image.open(tmp_path / "walk.partial.gif") as partial:
        assert partial.n_frames == 3


def test_a_movie_without_its_package_names_the_extra(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert interpolate(source[0], tmp_path / "walk.mp4") == 2
    assert "error: --out: an MP4 needs imageio-ffmpeg: pip install -e '.[video]'" in capsys.readouterr().err


def test_a_zoom_beyond_the_trained_area_warns_once(source, tmp_path, capsys):
    options = ("--zoom", 2, "--center", "1,0", "--seconds", 1, "--fps", 5)
    assert interpolate(source[0], tmp_path / "zoom.gif", *options) == 0
    assert capsys.readouterr().err.count("goes beyond the trained") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "walk.avi"], r"--out: got '.*walk\.avi', must end in \.mp4, \.gif, \.webp"),
        (["--out", "walk.gif", "--fps", "60"], r"--fps: got 60\.0, must be 0\.01 to 50 for \.gif"),
        (["--fps", "0"], r"--fps: got 0\.0, must be a positive number"),
        (["--seconds", "nan"], "--seconds: got nan, must be a positive number"),
        (["--seconds", "0.05"], r"--seconds: got 0\.05, which is less than 2 frames at 24 frames per second"),
        (["--seeds", "4"], "--seeds: got 4 alone, must be at least 2 for a walk"),
        (["--zoom", "0"], r"--zoom: got 0\.0, must be a positive number"),
        (["--zoom", "4", "--region", "0,0,0,1"], r"--region: got \(0\.0, 0\.0, 0\.0, 1\.0\), must be"),
        (["--zoom", "4", "--loop"], "--loop: cannot be combined with --zoom"),
        (["--mix", "4", "--loop"], "--loop: cannot be combined with --mix"),
        (["--pan", "2,0", "--loop"], "--loop: cannot be combined with --pan 2,0, not a whole turn of a panorama"),
        (["--center", "0,0"], "--center: needs --zoom"),
        (["--crossover", "2"], "--crossover: needs --mix"),
        (["--out", "mix.png", "--mix", "4", "--crossover", "8"], "--crossover: got 8, must be 0 to 7"),
        (["--out", "mix.gif", "--mix", "4"], "--out: got .*, must end in one of"),
        (["--out", "mix.jpg", "--mix", "0-9", "--size", "6000"], "--out: got 68057x30935 for .*JPEG holds 65500"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_refused(source, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    out = "walk.webp"
    if "--out" in options:
        out, options = options[1], options[2:]
    assert interpolate(source[0], out, *options) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"error: {message}.*\n", error), error
    assert not list(tmp_path.iterdir())

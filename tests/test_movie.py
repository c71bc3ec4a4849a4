"""Frames to movies: what is decoded again is what was added."""

import importlib.util
import os
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from cips_fast.files.movie import Movie

from .pictures import picture

needs_ffmpeg = pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="no imageio-ffmpeg")
ENDINGS = pytest.mark.parametrize("ending", [pytest.param("mp4", marks=needs_ffmpeg), "gif", "webp"])
HEIGHT, WIDTH = 48, 80


def frames(count):
    """A smooth picture, a third as colourful as can be, that moves to the left: uint8 [48, 80, 3] each."""
    wide = picture(height=HEIGHT, width=3 * WIDTH) // 3 + 80
    return [wide[:, 8 * index : 8 * index + WIDTH] for index in range(count)]


def decode(path):
    """Frames of a movie, uint8 [F, H, W, 3], and how long each is shown, in ms."""
    if path.suffix == ".mp4":
        import imageio_ffmpeg

        reader = imageio_ffmpeg.read_frames(str(path))
        about = next(reader)
        width, height = about["size"]
        shown = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
        return np.stack(shown), [1000 / about["fps"]] * len(shown)
    shown, durations = [], []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            shown.append(np.asarray(image.convert("RGB")))  # decodes: a WebP knows the duration only then
            durations.append(image.info["duration"])
    return np.stack(shown), durations


def write(path, added, fps=24):
    with Movie(path, fps, HEIGHT, WIDTH) as movie:
        for frame in added:
            movie.add(frame)


def mean_error(shown, added):
    return np.abs(shown.astype(int) - np.stack(added)).mean()


@ENDINGS
def test_frames_come_back(tmp_path, ending):
    added, path = frames(20), tmp_path / f"walk.{ending}"
    write(path, added)
    shown, _ = decode(path)
    assert shown.shape == (20, HEIGHT, WIDTH, 3)
    assert mean_error(shown, added) < 2
    # Any other order, or a shift by one frame, would be worse.
    assert mean_error(shown[1:], added[1:]) < 0.5 * mean_error(shown[1:], added[:-1])
    assert list(tmp_path.iterdir()) == [path]


@ENDINGS
@pytest.mark.parametrize("fps", [12, 24, Fraction(30000, 1001), 48])
def test_time_is_kept(tmp_path, ending, fps):
    path = tmp_path / f"walk.{ending}"
    write(path, frames(13), fps)
    _, durations = decode(path)
    assert len(durations) == 13
    assert sum(durations) == pytest.approx(13 * 1000 / fps, abs={"mp4": 0.1, "webp": 0.5, "gif": 5}[ending])
    assert max(durations) - min(durations) <= {"mp4": 0, "webp": 1, "gif": 10}[ending]


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_a_still_moment_takes_its_time_and_the_loop_never_ends(tmp_path, ending):
    first, second = frames(2)
    path = tmp_path / f"walk.{ending}"
    write(path, [first] * 5 + [second] * 3, fps=10)
    _, durations = decode(path)
    assert sum(durations) == 800
    with Image.open(path) as image:
        assert image.info["loop"] == 0


@needs_ffmpeg
def test_an_mp4_has_the_colours_it_says(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 60, 120], [30, 140, 90]], np.uint8)
    frame = np.tile(colours.repeat(16, 0), (HEIGHT, 1, 1))
    assert frame.shape == (HEIGHT, WIDTH, 3)
    path = tmp_path / "walk.mp4"
    write(path, [frame] * 4)
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    assert next(reader)["pix_fmt"] == "yuv420p(tv, bt709, progressive)"
    reader.close()
    assert np.abs(decode(path)[0][2, 24, 8::16].astype(int) - colours).max() <= 2


@ENDINGS
def test_an_interrupted_movie_plays_up_to_there(tmp_path, ending):
    path = tmp_path / f"walk.{ending}"
    path.write_bytes(b"an older movie")
    movie, added = Movie(path, 24, HEIGHT, WIDTH), frames(7)
    with pytest.raises(KeyboardInterrupt), movie:  # noqa: PT012
        for frame in added:
            movie.add(frame)
        raise KeyboardInterrupt
    assert path.read_bytes() == b"an older movie"
    assert movie.partial == tmp_path / f"walk.partial.{ending}"
    shown, _ = decode(movie.partial)
    assert len(shown) == movie.frames == 7
    assert mean_error(shown, added) < 2
    write(path, added)
    assert list(tmp_path.iterdir()) == [path]


@ENDINGS
def test_a_movie_without_frames_leaves_nothing(tmp_path, ending):
    with pytest.raises(ValueError, match=r"frames: got none for .*must be at least 1"):
        write(tmp_path / f"walk.{ending}", [])
    with pytest.raises(KeyboardInterrupt), Movie(tmp_path / f"walk.{ending}", 24, HEIGHT, WIDTH):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@needs_ffmpeg
def test_ctrl_c_does_not_reach_ffmpeg(tmp_path):
    """A terminal sends it to the whole process group; the frames that ffmpeg still holds would be lost."""
    with Movie(tmp_path / "walk.mp4", 24, HEIGHT, WIDTH) as movie:
        movie.add(frames(1)[0])
        assert os.getpgid(movie._encoder.process.pid) != os.getpgrp()


@needs_ffmpeg
@pytest.mark.parametrize("when", ["at once", "at the end"])
def test_what_ffmpeg_complains_of_is_passed_on(tmp_path, monkeypatch, when):
    program = tmp_path / "ffmpeg"
    read = "" if when == "at once" else "cat > /dev/null\n"
    program.write_text(f'#!/bin/sh\n{read}for last; do :; done\ntouch "$last"\necho No space left >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    with pytest.raises(OSError, match=r"ffmpeg cannot write .*walk\.mp4': No space left$"):
        write(tmp_path / "walk.mp4", frames(20) * 10)
    assert list(tmp_path.iterdir()) == [program]


def test_an_mp4_without_the_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[video\]'"):
        Movie(tmp_path / "walk.mp4", 24, HEIGHT, WIDTH)
    write(tmp_path / "walk.gif", frames(3))


@pytest.mark.parametrize(
    ("name", "fps", "height", "width", "message"),
    [
        ("walk.avi", 24, 48, 80, r"path: got '.*walk\.avi', must end in \.mp4, \.gif, \.webp"),
        ("walk", 24, 48, 80, "must end in"),
        ("walk.mp4", 0, 48, 80, r"fps: got 0, must be 0\.01 to 240 for \.mp4"),
        ("walk.gif", 60, 48, 80, r"fps: got 60, must be 0\.01 to 50 for \.gif"),
        ("walk.webp", float("nan"), 48, 80, "fps: got nan"),
        ("walk.mp4", 24, 47, 80, r"height: got 47, must be 1 to 16384 and even for \.mp4"),
        ("walk.mp4", 24, 48, 20000, "width: got 20000, must be 1 to 16384 and even"),
        ("walk.webp", 24, 0, 80, r"height: got 0, must be 1 to 16383 for \.webp"),
    ],
)
def test_what_no_movie_can_be_is_refused(tmp_path, name, fps, height, width, message):
    with pytest.raises(ValueError, match=message):
        Movie(tmp_path / name, fps, height, width)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="whose folder does not exist"):
        Movie(tmp_path / "none" / "walk.gif", 24, HEIGHT, WIDTH)


def test_frames_that_do_not_fit_are_refused(tmp_path):
    movie = Movie(tmp_path / "walk.gif", 24, HEIGHT, WIDTH)
    for frame in (frames(1)[0][:-1], frames(1)[0].astype(np.float32), frames(1)[0][..., 0]):
        with pytest.raises(ValueError, match=r"frame: got .*, must be \[48, 80, 3\] of uint8"):
            movie.add(frame)
    movie.add(frames(1)[0])
    movie.close()
    movie.close()
    with pytest.raises(ValueError, match="which is closed"):
        movie.add(frames(1)[0])
    assert len(decode(tmp_path / "walk.gif")[0]) == 1

"""Drawn landscapes: by the index alone, in the background, safe against damage and competition."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cips_fast.train.data import landscapes
from cips_fast.train.data.sources import open_source

from .needs import needs_landscapes
from .pictures import ROOT, R

pytestmark = needs_landscapes


def test_landscapes_depend_on_the_index_alone(tmp_path):
    one, two = (open_source("landscapes", R, cache_dir=tmp_path / name) for name in "ab")
    forwards = [one.load(i) for i in range(4)]
    backwards = [two.load(i) for i in reversed(range(4))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    np.testing.assert_array_equal([one.load(i) for i in range(4)], forwards)  # now from the cache
    assert len({image.tobytes() for image in forwards}) == 4


def test_landscapes_are_cached_by_style_and_resolution(cache):
    source = open_source("landscapes", R)
    source.load(123)
    name = f"landscapes-{metadata.version('dicebear-styles')}-{R}"
    assert [path.name for path in (cache / name).iterdir()] == ["000123.png"]
    assert len(source) == 5000


def test_heldout_landscapes_follow_the_training_ones():
    heldout = open_source("landscapes", R, split="heldout")
    heldout.load(len(heldout) - 1)
    heldout.load(0)
    assert sorted(path.name for path in heldout.folder.iterdir()) == ["005000.png", "005499.png"]


@pytest.mark.parametrize("resolution", [16, 31, 64])
def test_drawing_without_the_idle_clip_changes_no_pixel(resolution):
    import resvg_py

    for seed in range(12):
        svg = landscapes._svg(seed)
        size = {"width": resolution, "height": resolution, "skip_system_fonts": True}
        plain = bytes(resvg_py.svg_to_bytes(svg_string=svg, **size))
        assert "clip-path=" not in landscapes._without_idle_clip(svg)
        with Image.open(io.BytesIO(plain)) as want, Image.open(io.BytesIO(landscapes.draw(seed, resolution))) as got:
            assert want.convert("RGBA").getchannel("A").getextrema() == (255, 255)
            np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_a_clip_that_cuts_is_left_alone():
    svg = landscapes._svg(0).replace('rx="0"', 'rx="9"')
    assert landscapes._without_idle_clip(svg) == svg


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_landscape_is_redrawn(share):
    source = open_source("landscapes", R)
    want = source.load(7)
    path = source.folder / "000007.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    np.testing.assert_array_equal(source.load(7), want)
    assert path.read_bytes() == whole


def test_a_flipped_byte_in_a_cached_landscape_changes_no_pixel():
    source = open_source("landscapes", 16)
    want = source.load(7)
    path = source.folder / "000007.png"
    whole = path.read_bytes()
    end = len(whole) - 12  # what follows the pixels matters to none of them
    for place in range(end):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        np.testing.assert_array_equal(source.load(7), want)
        assert path.read_bytes()[:end] == whole[:end]  # drawn again


def test_a_cache_that_is_removed_while_landscapes_are_drawn():
    source = open_source("landscapes", R)
    drawing = source.prepare(range(5000), workers=1)
    wait_for(lambda: drawing.done > 0)
    shutil.rmtree(source.folder, ignore_errors=True)
    assert drawing.done < 5000
    drawing.stop()
    shutil.rmtree(source.folder, ignore_errors=True)
    assert drawing.done == 0


def test_a_landscape_of_another_size_is_redrawn():
    source = open_source("landscapes", R)
    want = source.load(7)
    (source.folder / "000007.png").write_bytes(landscapes.draw(7, R // 2))
    np.testing.assert_array_equal(source.load(7), want)


def test_an_unwritable_cache_costs_only_a_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    source = open_source("landscapes", R, cache_dir=tmp_path / "file")
    with pytest.warns(UserWarning, match="cannot write"):
        image = source.load(3)
    np.testing.assert_array_equal(image, open_source("landscapes", R).load(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning is enough
        drawing = source.prepare(range(3), workers=1)
    assert (drawing.total, drawing.done, drawing.running) == (0, 0, False)


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_prepare_draws_what_is_missing():
    source = open_source("landscapes", R)
    want = source.load(2)
    changed = (source.folder / "000002.png").stat().st_mtime_ns
    drawing = source.prepare([5, 2, 1, 5, 4], workers=2)
    assert drawing.total == 3
    wait_for(lambda: not drawing.running)
    assert drawing.done == 3
    names = sorted(path.name for path in source.folder.iterdir())
    assert names == ["000001.png", "000002.png", "000004.png", "000005.png"]
    assert (source.folder / "000002.png").stat().st_mtime_ns == changed
    np.testing.assert_array_equal(source.load(2), want)
    assert (source.folder / "000005.png").read_bytes() == landscapes.draw(5, R)


def test_stop_ends_the_drawing():
    source = open_source("landscapes", R)
    drawing = source.prepare(range(5000), workers=1)
    wait_for(lambda: drawing.done > 0)
    drawing.stop()
    assert not drawing.running
    assert 0 < drawing.done < drawing.total == 5000
    drawing.stop()


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL and parent process ids are POSIX's")
def test_workers_die_with_a_killed_parent(cache):
    program = (
        "import time; from cips_fast.train.data.sources import open_source\n"
        f"drawing = open_source('landscapes', {R}).prepare(range(5000), 2)\n"
        "print(*(process.pid for process in drawing._processes), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    workers = [int(word) for word in parent.stdout.readline().split()]
    wait_for(lambda: list(cache.rglob("*.png")))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert len(workers) == 2
    wait_for(lambda: not any(map(is_alive, workers)))
    assert len(list(cache.rglob("*.png"))) < 5000


def is_alive(pid):
    """Whether a process runs; one that has ended but that nobody has waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_processes_draw_one_folder(monkeypatch):
    monkeypatch.setitem(landscapes.COUNTS, "train", 60)
    source = open_source("landscapes", R)
    drawings = [source.prepare(range(60), workers=1) for _ in range(2)]
    loaded = [source.load(i) for i in range(60)]
    wait_for(lambda: not any(drawing.running for drawing in drawings))
    assert [drawing.done for drawing in drawings] == [drawing.total for drawing in drawings]
    assert len(list(source.folder.iterdir())) == 60  # and no temporary file
    np.testing.assert_array_equal([source.load(i) for i in range(60)], loaded)


def test_old_temporary_files_are_removed():
    source = open_source("landscapes", R)
    source.folder.mkdir(parents=True)
    old, young = source.folder / "000001.png.7-a.tmp", source.folder / "000002.png.8-b.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * landscapes.STALE_SECONDS,) * 2)
    source.prepare([], workers=1)
    assert not old.exists()
    assert young.exists()

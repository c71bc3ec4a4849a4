"""Folders and .zip files of images: every mode and format, damage, the cache."""

import io
import os
import pickle
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cips_fast.files.images import decode_image
from cips_fast.train.data import folder, images
from cips_fast.train.data.images import DataError
from cips_fast.train.data.landscapes import LandscapeSource
from cips_fast.train.data.sources import open_source

from .pictures import R, assert_close, expected, picture, save


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
    monkeypatch.setattr(folder, "decode_image", lambda *given: calls.append(1) or decode_image(*given))
    return calls


def test_temporary_files_of_killed_processes_are_removed_from_the_cache(data, cache):
    save(data / "a.png")
    folders = cache / "folders"
    folders.mkdir(parents=True)
    old = [folders / ".99-0123abcd.partial", folders / "a.npy.7-a.tmp"]
    young, other = folders / ".98-0123abcd.partial", folders / "b.npy"
    for file in (*old, young, other):
        file.touch()
    for file in (*old, other):
        os.utime(file, (time.time() - 2 * folder.STALE_SECONDS,) * 2)
    open_source(str(data), R)
    assert not any(file.exists() for file in old)
    assert young.exists()
    assert other.exists()


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


def cache_file(cache):
    (path,) = (cache / "folders").iterdir()
    return path


def test_a_flipped_byte_in_the_cache_changes_no_pixel(data, cache):
    """Every byte of header, list and seal, and one in 97 of the pixels."""
    for seed in range(2):
        save(data / f"{seed}.png", seed)
    (data / "bad.png").touch()
    with pytest.warns(UserWarning, match="left out 1 of 3"):
        open_source(str(data), 8)
    path = cache_file(cache)
    whole = path.read_bytes()
    pixels = range(128, 128 + 2 * 3 * 8 * 8)
    for place in range(len(whole)):
        if place in pixels and place % 97:
            continue
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            source = open_source(str(data), 8)
            for seed in range(2):
                np.testing.assert_array_equal(source.load(seed), expected(picture(seed), 8))
        told = [str(one.message) for one in caught if "is damaged: its images are decoded again" in str(one.message)]
        assert len(told) == (place in pixels)
        if place in pixels:
            assert not path.exists()  # and the next opening writes it again
    with pytest.warns(UserWarning, match="left out 1 of 3"):
        open_source(str(data), 8)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        "[1, 2]".encode("utf-16"),
        b"PK\x03\x04" + bytes(200),
        b"\x93NUMPY\1\0",
        b"-" * 400,
        bytes(400),
    ],
    ids=["empty", "list", "null", "utf-16", "zip", "header", "signs", "zeros"],
)
def test_a_file_that_is_no_cache_is_replaced(content, data, cache):
    save(data / "a.png")
    want = open_source(str(data), R).load(0)
    path = cache_file(cache)
    whole = path.read_bytes()
    path.write_bytes(content)
    np.testing.assert_array_equal(open_source(str(data), R).load(0), want)
    assert path.read_bytes() == whole


@pytest.mark.skipif(os.name != "posix", reason="pipes need POSIX")
def test_a_pipe_in_the_caches_place_does_not_hang(data, cache):
    save(data / "a.png")
    open_source(str(data), R)
    path = cache_file(cache)
    path.unlink()
    os.mkfifo(path)
    np.testing.assert_array_equal(open_source(str(data), R).load(0), expected(picture(0)))


@pytest.mark.parametrize("how", ["truncated", "emptied", "removed"])
def test_a_cache_that_shrinks_while_it_is_used(how, data, cache):
    for seed in range(3):
        save(data / f"{seed}.png", seed)
    source = open_source(str(data), R)
    path = cache_file(cache)
    if how == "removed":
        path.unlink()
    else:
        os.truncate(path, 0 if how == "emptied" else 200)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(3):
            np.testing.assert_array_equal(source.load(seed), expected(picture(seed)))
    assert len(caught) == (how != "removed")


@pytest.mark.parametrize("home", [None, "~nobodyhere/cache"])
def test_without_a_home_folder_there_is_no_cache(home, data, tmp_path, monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CIPS_FAST_CACHE")
    monkeypatch.setattr(Path, "expanduser", homeless)
    if home:
        monkeypatch.setenv("CIPS_FAST_CACHE", home)
    assert images.cache_root() is None
    save(data / "a.png")
    with pytest.warns(UserWarning, match="there is no home folder.*CIPS_FAST_CACHE") as caught:
        source = folder.FolderSource(data, R, None)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(source.load(0), expected(picture(0)))
    landscapes = LandscapeSource(R, None)
    with pytest.warns(UserWarning, match=r"there is no home folder.*CIPS_FAST_CACHE") as caught:
        first = [landscapes.load(0) for _ in range(2)]
    np.testing.assert_array_equal(*first)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing = landscapes.prepare(range(3), workers=1)
    assert (drawing.total, drawing.done, drawing.running, landscapes.is_cached(0)) == (0, 0, False, False)


@pytest.mark.skipif(os.name != "posix", reason="names that are no text need POSIX")
def test_names_that_are_no_text(data):
    (data / os.fsdecode(b"\xff\xfe")).mkdir()
    save(data / os.fsdecode(b"\xff\xfe/a.png"), 4)
    (data / os.fsdecode(b"bad-\xff.png")).touch()
    for _ in range(2):
        with pytest.warns(UserWarning, match="left out 1 of 2 files"):
            source = open_source(str(data), R)
        np.testing.assert_array_equal(source.load(0), expected(picture(4)))


def test_an_encrypted_zip_is_no_data(data):
    save(data / "a.png")
    path = Path(pack(data))
    content = bytearray(path.read_bytes())
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(start) + flags] |= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"1 files, none readable: .*encrypted"):
        open_source(str(path), R)

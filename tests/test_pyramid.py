"""Images written tile by tile: what is in the file, what an interruption leaves, and what memory it takes."""

import errno
import io
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cips_fast.files import lock, partial_tiff, pyramid
from cips_fast.files.partial_tiff import PartialTiff

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH, SIDE = 100, 150, 32
TILES = 4 * 5  # of the full resolution; 2 × 3, 1 × 2 and 1 in the levels below


class Renderer:
    """Rectangles of a random picture; counts them, and fails when it is asked for one too many."""

    def __init__(self, height=HEIGHT, width=WIDTH, most=math.inf, error=None):
        self.picture = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        self.asked, self.most, self.error = [], most, error or RuntimeError("no more")

    def __call__(self, rows, columns):
        if len(self.asked) >= self.most:
            raise self.error
        self.asked.append((rows.start, rows.stop, columns.start, columns.stop))
        return self.picture[rows, columns]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.tif"


@pytest.fixture
def folder(path):
    return path.with_name("image.tif.partial")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The finished file's bytes, of one call."""
    path = tmp_path_factory.mktemp("whole") / "image.tif"
    make(path, Renderer())
    return path.read_bytes()


def make(path, tile, height=HEIGHT, width=WIDTH, **options):
    pyramid.write(path, height, width, tile, **({"tile_size": SIDE} | options))


def halved(pixels):
    """Means of 2 × 2 pixels, of those that exist, rounded half up: floating point, and NaN for what is outside."""
    height, width, _ = pixels.shape
    even = np.full((height + height % 2, width + width % 2, 3), np.nan)
    even[:height, :width] = pixels
    blocks = even.reshape(len(even) // 2, 2, -1, 2, 3)
    return np.floor(np.nanmean(blocks, axis=(1, 3)) + 0.5).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(1, 1, 16), (16, 16, 16), (17, 33, 16), (100, 150, 32), (131, 97, 16), (5, 300, 16), (129, 1, 64), (40, 70, 512)],
    ids=lambda size: str(size),
)
def test_levels_are_the_picture_and_its_box_means(path, height, width, side):
    renderer = Renderer(height, width)
    make(path, renderer, height, width, tile_size=side)
    expected = renderer.picture
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff
        for level, page in enumerate(tiff.pages):
            assert page.is_tiled
            assert (page.is_reduced, page.tile) == (level > 0, (side, side))
            np.testing.assert_array_equal(page.asarray(), expected)
            last, expected = expected, halved(expected)
    assert max(last.shape) <= side
    assert len(tiff.pages) == 1 or 2 * max(last.shape) > side


def test_readers_find_the_levels(path):
    renderer = Renderer()
    make(path, renderer, description="Æ ridge, seed 3")
    with tifffile.TiffFile(path) as tiff:
        (series,) = tiff.series
        assert [level.shape for level in series.levels] == [(100, 150, 3), (50, 75, 3), (25, 38, 3), (13, 19, 3)]
        np.testing.assert_array_equal(series.levels[2].asarray(), halved(halved(renderer.picture)))
        assert tiff.pages[0].description == "Æ ridge, seed 3"
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), renderer.picture)


def test_border_tiles_are_padded_with_their_last_pixels(path):
    renderer = Renderer()
    make(path, renderer)
    with tifffile.TiffFile(path) as tiff:
        tile, *_ = tiff.pages[0].decode(*_last_segment(tiff.pages[0]), _fullsize=True)
    np.testing.assert_array_equal(tile[0, :4, :22], renderer.picture[96:, 128:])
    np.testing.assert_array_equal(tile[0, 4:, :22], np.broadcast_to(renderer.picture[-1:, 128:], (28, 22, 3)))
    np.testing.assert_array_equal(tile[0, :, 22:], np.broadcast_to(tile[0, :, 21:22], (32, 10, 3)))


def _last_segment(page):
    index = len(page.dataoffsets) - 1
    page.parent.filehandle.seek(page.dataoffsets[index])
    return page.parent.filehandle.read(page.databytecounts[index]), index


def test_every_tile_is_asked_for_once(path):
    renderer = Renderer()
    make(path, renderer)
    rows, columns = [(0, 32), (32, 64), (64, 96), (96, 100)], [(0, 32), (32, 64), (64, 96), (96, 128), (128, 150)]
    assert sorted(renderer.asked) == [(*row, *column) for row in rows for column in columns]


def test_a_call_that_ends_leaves_nothing_but_the_image(path, folder):
    path.write_bytes(b"an older image")
    make(path, Renderer())
    assert [*path.parent.glob("image*")] == [path]


def test_workers_render_at_once_and_make_the_same_file(path, uninterrupted):
    renderer, meeting, threads = Renderer(), threading.Barrier(2, timeout=20), set()

    def tile(rows, columns):
        if rows.start < 64 and columns.start < 64:
            meeting.wait()  # passes only where two tiles are in the making at a time
        threads.add(threading.current_thread())
        return renderer(rows, columns)

    make(path, tile, workers=2)
    assert path.read_bytes() == uninterrupted
    assert threading.current_thread() not in threads


def test_a_single_worker_is_the_caller(path):
    renderer, threads = Renderer(), set()
    make(path, lambda *place: (threads.add(threading.current_thread()), renderer(*place))[1])
    assert threads == {threading.current_thread()}


@pytest.fixture
def slow_encoding(monkeypatch):
    """Threads that are always behind with compressing."""
    encode = pyramid.encode
    monkeypatch.setattr(pyramid, "encode", lambda *tile: (time.sleep(0.01), encode(*tile))[1])


def test_a_renderer_may_reuse_its_memory(path, uninterrupted, slow_encoding):
    renderer, memory = Renderer(), np.empty((SIDE, SIDE, 3), np.uint8)

    def tile(rows, columns):
        pixels = renderer(rows, columns)
        memory[:] = 0
        memory[: pixels.shape[0], : pixels.shape[1]] = pixels
        return memory[: pixels.shape[0], : pixels.shape[1]]

    make(path, tile)
    assert path.read_bytes() == uninterrupted


@pytest.mark.parametrize("workers", [1, 2])
def test_rendering_waits_for_what_is_not_stored_yet(path, monkeypatch, slow_encoding, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    renderer, ahead = Renderer(), []
    make(path, renderer, workers=workers, progress=lambda stored, total: ahead.append(len(renderer.asked) - stored))
    assert 1 < max(ahead) <= workers + 2


def test_an_error_does_not_wait_for_tiles_that_are_not_begun(path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    begun = []

    def tile(rows, columns):
        begun.append((rows, columns))
        time.sleep(0.1)  # while others queue up
        if (rows.start, columns.start) == (0, 0):
            raise RuntimeError("no more")
        return np.zeros((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)

    with pytest.raises(RuntimeError, match="no more"):
        make(path, tile, workers=2)
    assert len(begun) <= 4


@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("workers", [1, 3])
def test_goes_on_after_an_error_in_tile(path, folder, uninterrupted, workers, error):
    path.write_bytes(b"an older image")
    for most in (0, 7, 4):
        with pytest.raises(type(error)) as caught:
            make(path, Renderer(most=most, error=error), workers=workers)
        assert caught.value is error
        assert path.read_bytes() == b"an older image"
        assert folder.is_dir()
    rest = Renderer()
    make(path, rest, workers=workers)
    assert len(rest.asked) == TILES - 7 - 4
    assert path.read_bytes() == uninterrupted
    assert not folder.exists()


def test_progress_counts_what_is_stored(path):
    first, second = [], []
    with pytest.raises(RuntimeError, match="no more"):
        make(path, Renderer(most=7), progress=lambda *counts: first.append(counts))
    make(path, Renderer(), progress=lambda *counts: second.append(counts))
    assert first == [(n, TILES) for n in range(8)]
    assert second == [(n, TILES) for n in range(7, TILES + 1)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_goes_on_after_a_killed_process(path, uninterrupted):
    def killed():
        renderer, reached = Renderer(), threading.Event()

        def tile(rows, columns):
            if len(renderer.asked) == 12:
                reached.wait(20)
                os.kill(os.getpid(), signal.SIGKILL)
            return renderer(rows, columns)

        make(path, tile, workers=2, progress=lambda finished, total: reached.set() if finished >= 9 else None)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    rest = Renderer()
    make(path, rest)
    assert TILES - 12 <= len(rest.asked) <= TILES - 9
    assert path.read_bytes() == uninterrupted


@pytest.mark.parametrize("damage", ["cut", "flipped", "zeros", "length"])
def test_torn_records_are_rendered_anew(path, folder, uninterrupted, damage):
    with pytest.raises(RuntimeError, match="no more"):
        make(path, Renderer(most=7))
    data = bytearray((folder / "tiles.tif").read_bytes())
    if damage == "cut":  # in the last of 7 + 1 records: four tiles, the one made of them, three tiles
        del data[-3:]
    elif damage == "flipped":
        data[-100] ^= 1
    elif damage == "zeros":  # what a file system may leave after a power failure
        data += bytes(1000)
    else:
        data += partial_tiff.RECORD.pack(2**32 - 1, 0) + bytes(1000)
    (folder / "tiles.tif").write_bytes(data)
    rest = Renderer()
    make(path, rest)
    assert len(rest.asked) == TILES - (6 if damage in ("cut", "flipped") else 7)
    assert path.read_bytes() == uninterrupted


@pytest.mark.parametrize(
    ("options", "there", "asked"),
    [
        ({"fingerprint": "seed 4"}, "fingerprint 'seed 3'", "fingerprint 'seed 4'"),
        ({"height": 99, "tile_size": 16}, "height 100, tile_size 32", "height 99, tile_size 16"),
        ({"description": "other"}, "description None", "description 'other'"),
    ],
    ids=["fingerprint", "sizes", "description"],
)
def test_another_unfinished_image_is_refused_and_kept(path, folder, uninterrupted, options, there, asked):
    with pytest.raises(RuntimeError, match="no more"):
        make(path, Renderer(most=7), fingerprint="seed 3")
    other = Renderer()
    with pytest.raises(ValueError, match="path: the folder") as caught:
        make(path, other, **({"fingerprint": "seed 3"} | options))
    for part in (str(folder), there, asked):
        assert part in str(caught.value)
    assert other.asked == []
    rest = Renderer()
    make(path, rest, fingerprint="seed 3")
    assert len(rest.asked) == TILES - 7
    assert path.read_bytes() == uninterrupted


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_key_is_told(path, folder, content):
    with pytest.raises(RuntimeError, match="no more"):
        make(path, Renderer(most=7))
    (folder / "key.json").write_text(content)
    with pytest.raises(ValueError, match=r"key\.json' is damaged .*; delete the folder"):
        make(path, Renderer())


def test_a_folder_without_tiles_protects_nothing(path, folder, uninterrupted):
    """A process that is killed between moving the image into place and removing the folder leaves a key alone."""
    folder.mkdir()
    (folder / "key.json").write_text(json.dumps({"height": 7, "first_record": 16}))
    make(path, Renderer())
    assert path.read_bytes() == uninterrupted
    assert not folder.exists()


def test_what_a_killed_writer_left_beside_the_tiles_is_removed(path, folder, uninterrupted):
    folder.mkdir()
    (folder / ".99-0123abcd.partial").write_text("half a key")
    make(path, Renderer())
    assert path.read_bytes() == uninterrupted
    assert not folder.exists()


def test_a_new_beginning_that_fails_is_not_taken_for_the_old_one(path, folder, uninterrupted, monkeypatch):
    with pytest.raises(RuntimeError, match="no more"):
        make(path, Renderer(most=7))
    key = json.loads((folder / "key.json").read_text()) | {"first_record": 16}
    (folder / "key.json").write_text(json.dumps(key))
    (folder / "tiles.tif").write_bytes(b"")

    def refuse(*args, **options):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(partial_tiff, "write_whole", refuse)
        with pytest.raises(OSError, match="Input/output error"):
            make(path, Renderer())
    make(path, Renderer())
    assert path.read_bytes() == uninterrupted


class FullDisk(io.FileIO):
    """A file on a disk with so many bytes left; the last write before it is full takes a part."""

    left = 0

    def write(self, data):
        if not FullDisk.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = super().write(data[: FullDisk.left])
        FullDisk.left -= written
        return written


@pytest.fixture
def disk(monkeypatch):
    """A context in which tiles are written to a full disk, whose room is `FullDisk.left`."""

    def open_file(file, mode="r", *args, **options):
        return FullDisk(file, "ab+") if mode == "a+b" else open(file, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(partial_tiff, "open", open_file, raising=False)
        yield patch


@pytest.mark.parametrize("workers", [1, 3])
def test_a_full_disk_keeps_what_is_stored(path, folder, uninterrupted, disk, workers):
    stored = []
    disk.setattr(FullDisk, "left", 30_000)  # the directories, and nine tiles of 3 KB
    with pytest.raises(OSError, match=r"path: .* cannot be written in .*: No space left on device; ") as caught:
        make(path, Renderer(), workers=workers, progress=lambda *counts: stored.append(counts))
    assert caught.value.errno == errno.ENOSPC
    for part in (str(path), str(folder), "9 of 29 tiles are stored there", "repeat the same call to continue"):
        assert part in str(caught.value)
    assert stored[-1] == (8, TILES)
    assert not path.exists()
    rest = Renderer()
    disk.undo()
    make(path, rest)
    assert len(rest.asked) == TILES - 8
    assert path.read_bytes() == uninterrupted


def test_a_tile_that_did_not_fit_leaves_no_trace(path, disk):
    disk.setattr(FullDisk, "left", 10_000)
    with PartialTiff(path, [(8, 8)], 16, {}) as tiff:
        disk.setattr(FullDisk, "left", 100)
        with pytest.raises(OSError, match="No space left on device"):
            tiff.append(bytes(range(150)))
        disk.setattr(FullDisk, "left", 200)
        tiff.append(b"smaller")
        assert tiff.read(0) == b"smaller"


def test_a_failure_at_the_end_loses_nothing(path, uninterrupted, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EACCES, "Permission denied")

    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda a, b: refuse(a, b) if b == path else replace(a, b))
        with pytest.raises(PermissionError, match="29 of 29 tiles are stored there"):
            make(path, Renderer())
    make(path, Renderer(most=0))
    assert path.read_bytes() == uninterrupted


@pytest.mark.skipif(not lock.AVAILABLE, reason="no file locks")
def test_two_writers_of_one_image_are_kept_apart(path, folder):
    with PartialTiff(path, [(8, 8)], 16, {}) as first:
        first.append(b"tile")
        with pytest.raises(BlockingIOError, match=r"another writer is at work in .*partial"):
            PartialTiff(path, [(8, 8)], 16, {})
    with PartialTiff(path, [(8, 8)], 16, {}) as second:
        assert (len(second), second.read(0)) == (1, b"tile")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0}, "height: got 0, must be a whole number from 1 to 4294967295"),
        ({"width": 2**32}, "width: got 4294967296, must be a whole number from 1 to 4294967295"),
        ({"width": 32.5}, r"width: got 32\.5"),
        ({"height": 2**32 - 1, "width": 2**32 - 1}, r"height, width: .* must be below 2\*\*63 bytes"),
        ({"height": 2**20, "width": 2**20}, "height, width, tile_size: .* take larger tiles"),
        ({"tile_size": 0}, "tile_size: got 0, must be a whole number from 16 to 16384"),
        ({"tile_size": 40}, "tile_size: got 40, must be a multiple of 16"),
        ({"workers": 0}, "workers: got 0"),
        ({"description": "a\0b"}, "description: .* zero byte"),
        ({"fingerprint": ("seed", 3)}, r"fingerprint: got \('seed', 3\), must be a text"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments_are_checked(path, folder, options, message):
    renderer = Renderer(1, 1)
    with pytest.raises(ValueError, match=message):
        make(path, renderer, **options)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (np.zeros((32, 32, 3), np.float32), r"float32 \[32, 32, 3\]"),
        (np.zeros((3, 32, 32), np.uint8), r"uint8 \[3, 32, 32\]"),
        (np.zeros((32, 32, 4), np.uint8), r"uint8 \[32, 32, 4\]"),
    ],
    ids=["float", "channels-first", "alpha"],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_what_tile_returns_is_checked(path, pixels, got, workers):
    with pytest.raises(ValueError, match=rf"tile: got {got} .*, must be uint8 \[32, 32, 3\]"):
        make(path, lambda rows, columns: pixels, workers=workers)


def test_places_that_cannot_be_written_are_told_before_rendering(tmp_path, monkeypatch):
    renderer = Renderer()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent'"):
        make(tmp_path / "absent" / "image.tif", renderer)
    with pytest.raises(IsADirectoryError, match="which is a folder"):
        make(tmp_path, renderer)
    (tmp_path / "taken.tif.partial").write_text("a file")
    with pytest.raises(FileExistsError, match=r"cannot be written in .*taken\.tif\.partial': File exists"):
        make(tmp_path / "taken.tif", renderer)

    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # a superuser may write everywhere
    with pytest.raises(PermissionError, match=r"path: .*image\.tif' cannot be written in .*: Permission denied"):
        make(tmp_path / "image.tif", renderer)
    assert renderer.asked == []


MEMORY = """
import re, sys, types
from pathlib import Path
import numpy as np

# The package without what it imports, PyTorch above all, which takes more memory than there is to measure.
package = sys.modules["cips_fast"] = types.ModuleType("cips_fast")
package.__path__ = [sys.argv[1]]
from cips_fast.files import pyramid

block = np.zeros((512, 512, 3), np.uint8)
block[:48] = np.random.default_rng(0).integers(0, 256, (48, 512, 3))
for side in (4096, 8192):
    pyramid.write(sys.argv[2], side, side, lambda rows, columns: block)
    print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc tells the largest memory")
def test_memory_does_not_grow_with_the_image(path):
    # getrusage's maximum is no good here: a process begins with that of the one that started it.
    command = [sys.executable, "-c", MEMORY, ROOT / "cips_fast", path]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    middle, large = (int(kilobytes) / 1024 for kilobytes in done.stdout.split())
    assert path.stat().st_size > 20 << 20  # it would be seen if only the compressed tiles were kept
    assert large - middle < 8, f"{middle:.0f} MiB at 4096², {large:.0f} MiB at 8192²"
    assert large < 128

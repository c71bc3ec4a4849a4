"""Writing images of any size as pyramidal TIFF files: they are rendered tile by tile, and memory holds a few tiles."""

import contextlib
import operator
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..checks import ArgumentError
from .partial_tiff import PartialTiff, decode, encode

MOST_ENCODERS = 16
MOST_TILES = 1 << 24  # at full resolution; the file's index takes about 100 bytes of memory for each

RenderTile = Callable[[slice, slice], np.ndarray]


def write(
    path: str | Path,
    height: int,
    width: int,
    tile: RenderTile,
    *,
    tile_size: int = 512,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    description: str | None = None,
    fingerprint: str = "",
) -> None:
    """Render an image of any size into a tiled, pyramidal BigTIFF. After an interruption, the same call resumes it.

    Every level is half as large as the one before it, rounded up, until one fits a tile. Its pixels are means of 2 × 2
    pixels of the level before it, rounded to whole numbers (halves up); at an odd edge, of the pixels that exist:

        p'[y, x] = ⌊(p[2y, 2x] + p[2y, 2x+1] + p[2y+1, 2x] + p[2y+1, 2x+1] + 2) / 4⌋

    Tiles are rendered along a Z-order curve, so that a tile of a lower level can be made soon after the four tiles that
    it consists of. Whatever the size of the image, memory holds one tile for each worker and processor (at most 16) and
    one for each level. Compression is lossless (deflate), so the size of the file is not known in advance; with all
    levels it is at most about 4 bytes a pixel.

    Until the image is complete, it is in the folder `<path>.partial`, which an interruption, a killed process or a full
    disk leaves behind. The same call then renders only the tiles that are not stored there. It first compares the
    stored tiles with their checksums; from the first damaged one on, tiles are rendered again. The finished file is the
    same, byte by byte, as that of an uninterrupted call. It replaces a file that is already at `path`.

    Args:
        path: the image, `.tif`, in a folder that exists.
        height, width: pixels, 1 to 2³² - 1 each, and at most 2²⁴ tiles.
        tile: renders a rectangle of the full image: it gets rows and columns as slices with start and stop, and returns
            uint8 [rows, columns, 3]. Rectangles are whole tiles, which are smaller at the right and lower edges.
        tile_size: pixels a side of a tile, a multiple of 16 from 16 to 16384.
        workers: threads that call `tile`. If it is 1, the calling thread does, so that its autograd and autocast modes
            and its device apply in `tile`; further threads start with PyTorch's defaults.
        progress: called with the number of tiles of the full resolution that are stored, and of all: once at the start
            and then after each tile.
        description: text for the file's ImageDescription.
        fingerprint: identifies all that decides the pixels besides the size, such as weights, latent and region. An
            unfinished image with a different fingerprint is not resumed.

    Raises:
        ValueError: an argument is out of its range, `tile` returned another shape or dtype, or `<path>.partial` holds
            another image.
        OSError: the folder does not exist or cannot be written, or the disk is full; the message says how to continue.
    """
    height, width, tile_size = _check_sizes(height, width, tile_size)
    workers = _whole_number("workers", workers, 1, 1024)
    if not (description is None or (isinstance(description, str) and "\0" not in description)):
        raise ArgumentError("description", f"got {description!r}, must be a text without zero bytes, or None")
    if not isinstance(fingerprint, str):
        raise ArgumentError("fingerprint", f"got {fingerprint!r}, must be a text")
    image = _Pyramid(level_sizes(height, width, tile_size), tile_size)
    key = {"height": height, "width": width, "tile_size": tile_size}
    key |= {"description": description, "fingerprint": fingerprint}
    with PartialTiff(Path(path), image.levels, tile_size, key, description) as tiff:
        _store_all(image, tile, tiff, workers, progress)
        tiff.publish(image.tiles())


def level_sizes(height: int, width: int, tile_size: int) -> list[tuple[int, int]]:
    """(height, width) of a pyramid's levels: each is half of the one before it, rounded up; the last fits a tile."""
    sizes = [(height, width)]
    while max(sizes[-1]) > tile_size:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes


class _Tile(NamedTuple):
    """Which tile of a pyramid: its level, and its row and column in that level."""

    level: int
    row: int
    column: int


class _Pyramid:
    """The tiles of all levels, and the order in which they are made."""

    def __init__(self, levels: list[tuple[int, int]], tile_size: int) -> None:
        self.levels = levels
        self.tile_size = tile_size
        self.grids = [(-(-height // tile_size), -(-width // tile_size)) for height, width in levels]

    def tiles(self) -> Iterator[_Tile]:
        """All tiles, each directly after the last of the tiles that it is made of."""
        return self._down_from(_Tile(len(self.levels) - 1, 0, 0))

    def _down_from(self, tile: _Tile) -> Iterator[_Tile]:
        for source in self.sources(tile):
            yield from self._down_from(source)
        yield tile

    def sources(self, tile: _Tile) -> list[_Tile]:
        """The tiles, at most four, that a tile is made of, row by row; none at full resolution."""
        if tile.level == 0:
            return []
        rows, columns = self.grids[tile.level - 1]
        return [
            _Tile(tile.level - 1, row, column)
            for row in range(2 * tile.row, min(2 * tile.row + 2, rows))
            for column in range(2 * tile.column, min(2 * tile.column + 2, columns))
        ]

    def extent(self, tile: _Tile) -> tuple[slice, slice]:
        """A tile's rows and columns in its level."""
        height, width = self.levels[tile.level]
        top, left = tile.row * self.tile_size, tile.column * self.tile_size
        return slice(top, min(top + self.tile_size, height)), slice(left, min(left + self.tile_size, width))


class _Done(NamedTuple):
    """A finished tile.

    Attributes:
        tile: which one.
        encoded: the bytes to store.
        halved: its pixels at half the size, for the next level.
    """

    tile: _Tile
    encoded: bytes
    halved: np.ndarray


def _store_all(
    image: _Pyramid, render: RenderTile, tiff: PartialTiff, workers: int, progress: Callable[[int, int], None] | None
) -> None:
    """Make and store every tile that is not stored yet."""
    total = image.grids[0][0] * image.grids[0][1]
    finished = sum(tile.level == 0 for tile in islice(image.tiles(), len(tiff)))
    report = progress or (lambda finished, total: None)
    report(finished, total)
    encoders = min(os.cpu_count() or 1, MOST_ENCODERS)
    with _threads(encoders) as encoding, _threads(workers) as rendering:
        jobs = _jobs(image, render, tiff, encoding, rendering if workers > 1 else None)
        for done in _in_order(jobs, workers + encoders):
            tiff.append(done.encoded)
            if done.tile.level == 0:
                finished += 1
                report(finished, total)


@contextlib.contextmanager
def _threads(number: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads; when the block ends, jobs that have not begun are cancelled."""
    pool = ThreadPoolExecutor(number, "cips_fast")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _jobs(
    image: _Pyramid,
    render: RenderTile,
    tiff: PartialTiff,
    encoding: ThreadPoolExecutor,
    rendering: ThreadPoolExecutor | None,
) -> Iterator["Future[_Done]"]:
    """Start the tiles that are not stored yet, one after the other; without `rendering`, this thread renders them.

    There is no deadlock: a job waits only for jobs that were started before it, and `encoding` runs them in this order.
    """
    stored = len(tiff)
    halves: list[Callable[[], np.ndarray]] = []  # of the tiles that have not been used for the next level yet
    for index, tile in enumerate(image.tiles()):
        sources = image.sources(tile)
        first = len(halves) - len(sources)
        parts, halves = halves[first:], halves[:first]
        if index < stored:
            halves.append(partial(_halve_stored, image, tiff, index, tile))
            continue
        if sources:
            pixels = partial(_join, parts, columns=len({source.column for source in sources}))
        elif rendering:
            pixels = rendering.submit(_render, render, *image.extent(tile)).result
        else:
            pixels = partial(np.asarray, _render(render, *image.extent(tile)))
        job = encoding.submit(_make, tile, pixels, image.tile_size)
        halves.append(partial(_halved, job))
        yield job


def _in_order(jobs: Iterator["Future[_Done]"], most: int) -> Iterator[_Done]:
    """Results of jobs in the order of their start; at most `most` jobs are held at a time.

    If starting a job fails, the results of the earlier jobs come first and then the error is raised.
    """
    waiting: deque[Future[_Done]] = deque()
    error = None
    while error is None:
        try:
            waiting.append(next(jobs))
        except StopIteration:
            break
        except BaseException as stopped:
            error = stopped
        while waiting and (len(waiting) > most or waiting[0].done()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if error is not None:
        raise error


def _render(render: RenderTile, rows: slice, columns: slice) -> np.ndarray:
    pixels = np.array(render(rows, columns))  # a copy, since `render` may use the same memory for the next tile
    shape = (rows.stop - rows.start, columns.stop - columns.start, 3)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise ArgumentError(
            "tile",
            f"got {pixels.dtype} {list(pixels.shape)} for rows {rows.start} to {rows.stop} and columns "
            f"{columns.start} to {columns.stop}, must be uint8 {list(shape)}",
        )
    return pixels


def _make(tile: _Tile, pixels: Callable[[], np.ndarray], tile_size: int) -> _Done:
    made = pixels()
    return _Done(tile, encode(made, tile_size), _halve(made))


def _halved(job: "Future[_Done]") -> np.ndarray:
    return job.result().halved


def _halve_stored(image: _Pyramid, tiff: PartialTiff, index: int, tile: _Tile) -> np.ndarray:
    height, width = (part.stop - part.start for part in image.extent(tile))
    return _halve(decode(tiff.read(index), image.tile_size)[:height, :width])


def _join(parts: list[Callable[[], np.ndarray]], columns: int) -> np.ndarray:
    """At most four pictures, given row by row, as one."""
    pictures = [part() for part in parts]
    rows = [np.concatenate(pictures[i : i + columns], 1) for i in range(0, len(pictures), columns)]
    return np.concatenate(rows, 0)


def _halve(pixels: np.ndarray) -> np.ndarray:
    """Rounded means of 2 × 2 pixels: [H, W, 3] -> [⌈H/2⌉, ⌈W/2⌉, 3]; an odd last row or column counts twice."""
    height, width, _ = pixels.shape
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    pairs = np.add(pixels[::2], pixels[1::2], dtype=np.uint16)  # [⌈H/2⌉, W, 3]
    return ((pairs[:, ::2] + pairs[:, 1::2] + 2) // 4).astype(np.uint8)


def _check_sizes(height: int, width: int, tile_size: int) -> tuple[int, int, int]:
    height = _whole_number("height", height, 1, 2**32 - 1)
    width = _whole_number("width", width, 1, 2**32 - 1)
    tile_size = _whole_number("tile_size", tile_size, 16, 16384)
    if tile_size % 16:
        raise ArgumentError("tile_size", f"got {tile_size}, must be a multiple of 16")
    if 3 * height * width >= 2**63:
        raise ArgumentError("height, width", f"got {height} and {width}, must be below 2**63 bytes, at three a pixel")
    if (tiles := -(-height // tile_size) * -(-width // tile_size)) > MOST_TILES:
        raise ArgumentError(
            "height, width, tile_size",
            f"got {height}, {width} and {tile_size}, which makes {tiles} tiles; must be at "
            f"most {MOST_TILES}, whose index fits in memory: take larger tiles",
        )
    return height, width, tile_size


def _whole_number(name: str, value: int, least: int, most: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        raise ArgumentError(name, f"got {value!r}, must be a whole number from {least} to {most}")
    return number

"""A pyramidal BigTIFF that is written tile by tile and can be resumed after an interruption.

While the image is unfinished, there is a folder `<image>.partial` next to it:

    key.json    what the image is: its size, its tiles, and all else that decides its pixels
    tiles.tif   the image so far: every level's directory, whose offsets are still empty, then one record a tile:
                its length and crc32, as two little-endian uint32, and the compressed tile

When all tiles are stored, the directories get their offsets and the file is moved to its path, so every tile is written
once and never copied. Records are in the order in which they were written. Readers use the offsets and so skip the
lengths and checksums between the tiles.
"""

import contextlib
import io
import json
import os
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile

from ..checks import ArgumentError, argument_os_error
from . import lock
from .atomic import TEMPORARY, move_into_place, write_whole

FOLDER_ENDING = ".partial"
RECORD = struct.Struct("<II")


class PartialTiff:
    """An RGB image that is being written; a context manager. `len` is the number of tiles that are stored.

    Args:
        path: where the finished image will be.
        levels: (height, width) of every level, the largest first.
        tile_size: pixels a side of a tile, a multiple of 16.
        key: all that decides the image's pixels, JSON values by name. An unfinished image is resumed only if its key is
            the same.
        description: text for the file's ImageDescription.

    Raises:
        ValueError: the folder holds an unfinished image with another key; the message names both.
        OSError: the folder cannot be made or written, or another writer is using it.
    """

    def __init__(
        self,
        path: Path,
        levels: Sequence[tuple[int, int]],
        tile_size: int,
        key: dict[str, int | str | None],
        description: str | None = None,
    ) -> None:
        self.path = path
        self.folder = path.with_name(path.name + FOLDER_ENDING)
        self._grids = [(-(-height // tile_size), -(-width // tile_size)) for height, width in levels]
        self._starts, self._lengths = array("Q"), array("I")  # of each stored tile's bytes, in the order of the records
        self._end = 0  # of the last whole record
        self._max_tile_bytes = 2 * 3 * tile_size**2  # deflate never doubles the size
        self._check_path()
        self._open()
        try:
            first = self._first_record(key)
            with self._explained():
                if first is None:
                    first = self._start(key, _directories(levels, tile_size, description))
                self._find_records(first)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "PartialTiff":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def total(self) -> int:
        """Number of tiles in all levels of the finished image."""
        return sum(rows * columns for rows, columns in self._grids)

    def append(self, tile: bytes) -> None:
        """Store the next tile, which `encode` has encoded.

        Raises:
            OSError: it cannot be written; the message says how to continue.
        """
        with self._explained():
            self._write(RECORD.pack(len(tile), zlib.crc32(tile)) + tile)
        self._keep(len(tile))

    def read(self, index: int) -> bytes:
        """A stored tile, as it was given to `append`. May be called in any thread."""
        with open(self.folder / "tiles.tif", "rb") as file:
            file.seek(self._starts[index])
            return file.read(self._lengths[index])

    def publish(self, tiles: Iterable[tuple[int, int, int]]) -> None:
        """Finish the file and move it to its path.

        Args:
            tiles: (level, row, column) of every stored tile, in the order in which they were stored.

        Raises:
            OSError: it cannot be written; no stored tile is lost.
        """
        starts = [np.zeros(grid, np.uint64) for grid in self._grids]
        lengths = [np.zeros(grid, np.uint32) for grid in self._grids]
        for index, (level, row, column) in enumerate(tiles):
            starts[level][row, column] = self._starts[index]
            lengths[level][row, column] = self._lengths[index]
        data = self.folder / "tiles.tif"
        with self._explained():
            with tifffile.TiffFile(data, mode="r+b") as tiff:
                for page, offsets, sizes in zip(tiff.pages, starts, lengths, strict=True):
                    page.tags["TileOffsets"].overwrite(offsets.ravel().tolist())
                    page.tags["TileByteCounts"].overwrite(sizes.ravel().tolist())
            if not lock.AVAILABLE:  # Windows cannot move an open file; elsewhere it stays locked until it is moved
                self._file.close()
            move_into_place(data, self.path)
            if not data.exists():  # else another writer has started the next image there, and key.json is that one's
                (self.folder / "key.json").unlink(missing_ok=True)
            self._file.close()
        with contextlib.suppress(OSError):  # the folder holds another file, or another writer has started there
            self.folder.rmdir()

    def _check_path(self) -> None:
        if self.path.is_dir():
            raise argument_os_error(IsADirectoryError, "path", f"got {str(self.path)!r}, which is a folder")
        if not self.path.parent.is_dir():
            reason = f"got {str(self.path)!r}, but there is no folder {str(self.path.parent)!r}"
            raise argument_os_error(FileNotFoundError, "path", reason)

    def _open(self) -> None:
        """Open the file of tiles and lock it, so that other writers are kept out until it is closed."""
        while True:
            with self._explained():
                self.folder.mkdir(exist_ok=True)
                self._file = open(self.folder / "tiles.tif", "a+b", buffering=0)  # noqa: SIM115, closed by __exit__
            try:
                self._lock()
                if self._is_still_there():
                    return
            except BaseException:
                self._file.close()
                raise
            self._file.close()

    def _is_still_there(self) -> bool:
        """Whether no other writer moved the file away after it was opened and before it was locked."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.folder / "tiles.tif"))
        except FileNotFoundError:
            return False

    def _lock(self) -> None:
        try:
            lock.hold(self._file)
        except BlockingIOError as error:
            reason = f"another writer is at work in {str(self.folder)!r}"
            raise argument_os_error(BlockingIOError, "path", reason, error.errno) from None

    def _first_record(self, key: dict[str, int | str | None]) -> int | None:
        """Where the records begin if the folder holds an unfinished image with this key; None if it holds no tiles."""
        try:
            found = json.loads((self.folder / "key.json").read_text("utf-8"))
            first = int(found.pop("first_record"))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                "path", f"{str(self.folder / 'key.json')!r} is damaged ({error}); delete the folder"
            ) from None
        if os.fstat(self._file.fileno()).st_size <= first:  # there is no tile yet, so another key does no harm
            return None
        different = [name for name in sorted(key.keys() | found.keys()) if key.get(name) != found.get(name)]
        if different:
            there = ", ".join(f"{name} {found.get(name)!r}" for name in different)
            asked = ", ".join(f"{name} {key.get(name)!r}" for name in different)
            raise ArgumentError(
                "path",
                f"the folder {str(self.folder)!r} holds an unfinished image with {there}, and now got {asked}; "
                "finish that image with the arguments that it was started with, or delete the folder",
            )
        return first

    def _start(self, key: dict[str, int | str | None], directories: bytes) -> int:
        """Prepare the folder for a new image; return where the records begin."""
        (self.folder / "key.json").unlink(missing_ok=True)  # of an older image, whose tiles are removed next
        self._file.truncate(0)
        self._write(directories)
        # Directories have no checksums, so they must be on the disk before key.json says that they are there.
        os.fsync(self._file.fileno())
        for file in self.folder.iterdir():
            if TEMPORARY.fullmatch(file.name):  # left by a writer that was killed while it wrote key.json
                file.unlink(missing_ok=True)
        write_whole(self.folder / "key.json", json.dumps(key | {"first_record": len(directories)}, indent=1).encode())
        return len(directories)

    def _find_records(self, first: int) -> None:
        """Find the undamaged records, which begin at `first`, and cut off the file after them."""
        self._end = first
        with open(self.folder / "tiles.tif", "rb") as file:
            file.seek(first)
            while len(self) < self.total and len(head := file.read(RECORD.size)) == RECORD.size:
                length, checksum = RECORD.unpack(head)
                if not 0 < length <= self._max_tile_bytes:
                    break
                tile = file.read(length)
                if len(tile) < length or zlib.crc32(tile) != checksum:
                    break
                self._keep(length)
        self._file.truncate(self._end)

    def _keep(self, length: int) -> None:
        """Remember where the next record is in the file."""
        self._starts.append(self._end + RECORD.size)
        self._lengths.append(length)
        self._end += RECORD.size + length

    def _write(self, data: bytes) -> None:
        """Append all of the data, or none."""
        rest = memoryview(data)
        try:
            while rest:  # when the disk becomes full, a part is written first, without an error
                rest = rest[self._file.write(rest) :]
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Add to an OSError the path, how many tiles are stored, and how to continue."""
        try:
            yield
        except OSError as error:
            reason = f"{str(self.path)!r} cannot be written in {str(self.folder)!r}: {error.strerror or error}"
            if len(self):
                estimate = self._end * self.total // len(self)
                reason += f"; {len(self):,} of {self.total:,} tiles are stored there, in {self._end:,} bytes of about "
                reason += f"{estimate:,}; repeat the same call to continue"
            raise argument_os_error(OSError, "path", reason, error.errno) from error


def discard(path: Path) -> None:
    """Remove what `PartialTiff` keeps of an unfinished image."""
    folder = path.with_name(path.name + FOLDER_ENDING)
    with contextlib.suppress(OSError):  # if a file cannot be removed, the next call reports it
        for name in ("key.json", "tiles.tif"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _directories(levels: Sequence[tuple[int, int]], tile_size: int, description: str | None) -> bytes:
    """A BigTIFF without tiles: a chain of the directories of all levels, with room for the tiles' offsets.

    OpenSlide, libvips, GDAL and tifffile all read a chain of directories as a pyramid. OpenSlide does not read SubIFDs.
    """
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=True, byteorder="<") as writer:
        for level, (height, width) in enumerate(levels):
            writer.write(
                iter([b""] * (-(-height // tile_size) * -(-width // tile_size))),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(tile_size, tile_size),
                photometric="rgb",
                compression="zlib",
                predictor=True,
                subfiletype=int(level > 0),  # 1: a smaller version of another image
                description=description.encode() if description and level == 0 else None,
                software="cips_fast",
                metadata=None,
            )
    return file.getvalue()


def encode(pixels: np.ndarray, tile_size: int) -> bytes:
    """A tile as it is stored: left neighbours subtracted modulo 256 (predictor 2), then deflated (compression 8).

    Args:
        pixels: uint8 [H, W, 3], at most a tile; if it is smaller, its last row and column are repeated.
    """
    height, width, _ = pixels.shape
    # Repeated edges take almost no space, and a viewer that interpolates does not darken the image's border.
    full = np.pad(pixels, ((0, tile_size - height), (0, tile_size - width), (0, 0)), mode="edge")
    return zlib.compress(np.diff(full, axis=1, prepend=np.uint8(0)))


def decode(tile: bytes, tile_size: int) -> np.ndarray:
    """The whole tile that `encode` encoded, uint8 [tile_size, tile_size, 3]."""
    differences = np.frombuffer(zlib.decompress(tile), np.uint8).reshape(tile_size, tile_size, 3)
    return np.cumsum(differences, axis=1, dtype=np.uint8)

"""Output of the commands: pictures in files, and lines on standard output.

A picture is held in memory and saved, or written tile by tile into a pyramidal TIFF.
"""

import argparse
import contextlib
import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..command_line import OptionError
from ..console import complain, encodable, put
from ..files import pictures, pyramid
from ..files.partial_tiff import discard
from ..render import Picture, tiles
from ._options import options_named

MAX_PIXELS_IN_MEMORY = 1 << 28
TILE_PIXELS = 512  # a side


def write_picture(args: argparse.Namespace, path: Path, picture: Picture) -> None:
    """Render a picture into a file, in the format that the ending of its path names; see `check_format`."""
    kind = check_format(args, path, picture.height, picture.width)
    with writable(path):
        if kind == "TIFF":
            _stream(args, path, picture)
        else:
            save_picture(path, render_pixels(picture, path.name))


def check_format(
    args: argparse.Namespace, path: Path, height: int, width: int, *, in_memory: bool = False, option: str = "--size"
) -> str:
    """The format that the ending of a path names.

    Args:
        in_memory: a TIFF is held in memory like other formats, not written tile by tile.
        option: the option that an error about the number of pixels names.

    Raises:
        OptionError: the ending names no format, or the picture is too large for the format or for memory.
    """
    with options_named(args):
        kind = pictures.format_of(path, height, width)
    if height * width > MAX_PIXELS_IN_MEMORY and (in_memory or kind != "TIFF"):
        raise OptionError(
            f"{option}: got {height * width} pixels in one {kind}, must be at most {MAX_PIXELS_IN_MEMORY}; "
            "a .tif of one picture may be larger"
        )
    tiles = -(-height // TILE_PIXELS) * -(-width // TILE_PIXELS)
    if tiles > pyramid.MOST_TILES:
        raise OptionError(
            f"--size: got {width}x{height}, which makes {tiles} tiles of {TILE_PIXELS}x{TILE_PIXELS} pixels, "
            f"must be at most {pyramid.MOST_TILES} tiles"
        )
    return kind


def render_pixels(picture: Picture, name: str) -> np.ndarray:
    """All pixels of a picture, uint8 [H, W, 3]; at most one tile of them is in float32 at a time."""
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    with tqdm(total=picture.height, desc=name, unit="row", leave=False, disable=None) as bar:
        for rows, columns in tiles(picture.height, picture.width, TILE_PIXELS):
            pixels[rows, columns] = pictures.to_pixels(picture.tile(rows, columns))
            bar.update((rows.stop - rows.start) * (columns.stop - columns.start) / picture.width)
    return pixels


def _stream(args: argparse.Namespace, path: Path, picture: Picture) -> None:
    """Write a picture as a pyramid of tiles, or the tiles that an interrupted command left out."""

    def tile(rows: slice, columns: slice) -> np.ndarray:
        return pictures.to_pixels(picture.tile(rows, columns))

    stored = (0, 0)  # tiles that are stored, and all tiles; a bar that is hidden does not count them

    with tqdm(desc=path.name, unit="tile", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            nonlocal stored
            stored, bar.total = (done, total), total
            bar.update(done - bar.n)

        size = (picture.height, picture.width)
        try:
            with options_named(args):
                pyramid.write(
                    path, *size, tile, tile_size=TILE_PIXELS, progress=progress, fingerprint=picture.fingerprint()
                )
        except OSError as error:
            raise OptionError(f"--out: {getattr(error, 'reason', None) or error.strerror or error}") from None
        except FloatingPointError:
            if not stored[0]:
                discard(path)
            raise
        except KeyboardInterrupt:
            bar.close()
            if stored[0]:
                done, total = stored
                complain(
                    f"stopped: {done} of {total} tiles are in {path}.partial; run the same command again to finish"
                )
            raise


def check_writable(path: Path) -> None:
    """Raise OptionError unless a file can be made at a path; missing parent folders are made."""
    with writable(path):
        pass


@contextlib.contextmanager
def writable(path: Path, *others: Path, option: str = "--out", given: Path | None = None) -> Iterator[None]:
    """Before the block, check that a file and others in its folder can be made; missing parent folders are made.

    If the block fails, the folders that were made for it are removed again if they are empty.

    Args:
        path, others: the files.
        option: the option that an error names.
        given: the path that an error shows (default: `path`).

    Raises:
        OptionError: a file cannot be made.
    """
    made: list[Path] = []
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_empty, made)
        try:
            for folder in reversed(path.parents):
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    made.append(folder)
            for one in (path, *others):
                _check_name(one)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except (OSError, ValueError) as error:  # ValueError: a NUL byte
            raise not_written(given or path, error, option) from None
        yield
        undo.pop_all()


def _check_name(path: Path) -> None:
    """Raise OSError if the path is a folder, or if its name is too long."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in reversed(folders):
            folder.rmdir()


def not_written(path: Path, error: Exception, option: str = "--out") -> OptionError:
    """The error of a command that cannot write a file."""
    reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
    return OptionError(f"{option}: got {str(path)!r}, which cannot be written ({reason})")


def save_picture(path: Path, pixels: np.ndarray, option: str = "--out") -> None:
    """Write a picture, uint8 [H, W, 3], in the format that the ending of its path names."""
    try:
        pictures.save(path, pixels)
    except (ValueError, OSError) as error:
        raise not_written(path, error, option) from None


def say(record: dict) -> None:
    """Print a line of JSON on standard output; numbers that are not finite, which JSON lacks, are printed as null."""
    record = {name: None if _is_not_finite(value) else value for name, value in record.items()}
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    put(line if encodable(line) else json.dumps(record))


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)

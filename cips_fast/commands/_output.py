"""Writing a picture: it is held in memory and saved, or written tile by tile into a pyramidal TIFF."""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..command_line import OptionError
from ..console import complain
from ..files import pictures, pyramid
from ..files.partial_tiff import discard
from ..render import Picture, tiles
from ._options import options_named, save_picture, writable

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

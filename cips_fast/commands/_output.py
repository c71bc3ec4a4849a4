"""A picture into a file: held in memory and saved, or streamed tile by tile into a pyramidal TIFF."""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..console import complain
from ..files import pictures, pyramid
from ..files.partial_tiff import discard
from ..render import Picture, tiles
from ._options import CommandError, options_named, save_picture, writable

LARGEST = 1 << 28  # pixels that are held in memory at once
TILE = 512


def write_picture(args: argparse.Namespace, path: Path, picture: Picture) -> None:
    """Render all of it into a file of the format that the path's ending names; see `check_format`."""
    kind = check_format(args, path, picture.height, picture.width)
    with writable(path):
        if kind == "TIFF":
            _stream(args, path, picture)
        else:
            save_picture(path, render_pixels(picture, path.name))


def check_format(
    args: argparse.Namespace, path: Path, height: int, width: int, *, in_memory: bool = False, option: str = "--size"
) -> str:
    """The format that the path's ending names; `in_memory`: a TIFF is not streamed; `option` makes the size.

    Raises:
        CommandError: there is none, or it does not hold such a picture, or memory does not.
    """
    with options_named(args):
        kind = pictures.format_of(path, height, width)
    if height * width > LARGEST and (in_memory or kind != "TIFF"):
        raise CommandError(
            f"{option}: got {height * width} pixels in one {kind}, may be {LARGEST}; "
            "a .tif of one picture may be larger"
        )
    tiles = -(-height // TILE) * -(-width // TILE)
    if tiles > pyramid.MOST_TILES:
        raise CommandError(
            f"--size: got {width}x{height}, which makes {tiles} tiles of {TILE}x{TILE}, may be {pyramid.MOST_TILES}"
        )
    return kind


def render_pixels(picture: Picture, name: str) -> np.ndarray:
    """All of it, uint8 [H, W, 3], never more than a tile of it in float32."""
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    with tqdm(total=picture.height, desc=name, unit="row", leave=False, disable=None) as bar:
        for rows, columns in tiles(picture.height, picture.width, TILE):
            pixels[rows, columns] = pictures.to_pixels(picture.tile(rows, columns))
            bar.update((rows.stop - rows.start) * (columns.stop - columns.start) / picture.width)
    return pixels


def _stream(args: argparse.Namespace, path: Path, picture: Picture) -> None:
    """The picture as a pyramid of tiles, or the rest of it."""

    def tile(rows: slice, columns: slice) -> np.ndarray:
        return pictures.to_pixels(picture.tile(rows, columns))

    stored = (0, 0)  # tiles, of how many; a bar that is not shown does not count

    with tqdm(desc=path.name, unit="tile", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            nonlocal stored
            stored, bar.total = (done, total), total
            bar.update(done - bar.n)

        size = (picture.height, picture.width)
        try:
            with options_named(args):
                pyramid.write(path, *size, tile, tile_size=TILE, progress=progress, fingerprint=picture.fingerprint())
        except OSError as error:
            raise CommandError(f"--out: {(error.strerror or str(error)).removeprefix('path: ')}") from None
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

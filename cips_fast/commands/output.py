"""A picture into a file: held in memory and saved, or streamed tile by tile into a pyramidal TIFF."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import pictures, pyramid
from ..render import Picture, tiles
from .common import CommandError, check_writable, save_picture

LARGEST = 1 << 28  # pixels that are held in memory at once
TILE = 512


def write_picture(path: Path, picture: Picture) -> None:
    """Render all of it into a file of the format that the path's ending names; see `check_format`."""
    if check_format(path, picture.height, picture.width) == "TIFF":
        _stream(path, picture)
    else:
        save_picture(path, render_pixels(picture, path.name))


def check_format(path: Path, height: int, width: int) -> str:
    """The format that the path's ending names.

    Raises:
        CommandError: there is none, it does not hold such a picture, memory does not, or nothing can be written there.
    """
    try:
        kind = pictures.format_of(path, height, width)
    except ValueError as error:
        raise CommandError(f"--{error}") from None
    if height * width > LARGEST and kind != "TIFF":
        raise CommandError(
            f"--size: got {height * width} pixels in one {kind}, may be {LARGEST}; a .tif of one picture may be larger"
        )
    check_writable(path)
    return kind


def render_pixels(picture: Picture, name: str) -> np.ndarray:
    """All of it, uint8 [H, W, 3], never more than a tile of it in float32."""
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    with tqdm(total=picture.height, desc=name, unit="row", leave=False, disable=None) as bar:
        for rows, columns in tiles(picture.height, picture.width, TILE):
            pixels[rows, columns] = pictures.to_pixels(picture.tile(rows, columns))
            bar.update((rows.stop - rows.start) * (columns.stop - columns.start) / picture.width)
    return pixels


def _stream(path: Path, picture: Picture) -> None:
    """The picture as a pyramid of tiles, or the rest of it."""

    def tile(rows: slice, columns: slice) -> np.ndarray:
        return pictures.to_pixels(picture.tile(rows, columns))

    with tqdm(desc=path.name, unit="tile", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        size = (picture.height, picture.width)
        try:
            pyramid.write(path, *size, tile, tile_size=TILE, progress=progress, fingerprint=picture.fingerprint())
        except (ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise CommandError(f"--out: {reason.removeprefix('path: ')}") from None

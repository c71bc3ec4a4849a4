"""What all image sources share: the protocol, the error, reading one image, and the cache folder."""

from __future__ import annotations

import contextlib
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageOps

from cips_fast.kernels.tune import cache_folder

# TGA has no signature to tell it by, and EPS is a program that Pillow would have run. Not every Pillow has them all.
Image.init()
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
FORMATS = tuple(name for name in FORMATS if name in Image.OPEN)
# What Pillow and zipfile raise on damaged, encrypted or hostile files.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError, MemoryError),
    *(struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError),
)


class DataError(ValueError):
    """Images that cannot be used as asked; the message says in one line what was got and what it may be."""


class ImageSource(Protocol):
    """A fixed list of RGB images, square ones or panoramas. Picklable, and usable from DataLoader workers.

    Attributes:
        name: short name for logs and file names.
        resolution: height R of every image in pixels, and its width, or half of it if they are panoramas.
    """

    name: str
    resolution: int

    def __len__(self) -> int: ...

    def load(self, index: int) -> np.ndarray:
        """Image `index` of 0 … len - 1: uint8 [R, R|2R, 3], RGB in 0 … 255, C-contiguous, writable, the caller's own.

        Raises:
            IndexError: index < 0 or index ≥ len.
        """
        ...


def cache_root(cache_dir: Path | None = None) -> Path:
    """The cache folder: `cache_dir`, else the package's own."""
    return Path(cache_dir).expanduser().absolute() if cache_dir else cache_folder()


def remove_stale(folder: Path, seconds: float) -> None:
    """Remove the `*.tmp` files that killed processes left in `folder`; younger ones may still be in the writing."""
    for temp in folder.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another cleaner was faster
            if time.time() - temp.stat().st_mtime > seconds:
                temp.unlink()


def check_index(index: int, length: int) -> None:
    """Raise IndexError unless 0 ≤ index < length."""
    if not 0 <= index < length:
        raise IndexError(f"image {index} of {length}: the index must be in 0 … {length - 1}")


def decode_image(file: BinaryIO, resolution: int) -> np.ndarray:
    """The central square of an image file, resized: uint8 [R, R, 3], RGB in 0 … 255. Raises one of UNREADABLE."""
    with Image.open(file, formats=FORMATS) as image:
        # A JPEG is decoded at 1/2, 1/4 or 1/8 when that still leaves three pixels for one.
        image.draft(None, (3 * resolution, 3 * resolution))
        ImageOps.exif_transpose(image, in_place=True)
        rgb = _to_rgb(image)
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    return np.array(square.resize((resolution, resolution), Image.Resampling.LANCZOS, reducing_gap=3.0))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # "I;16" and its kin, or "I" holding the same range
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = values * 255 if values.max() <= 1 else values
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode[-1] in "Aa" or "transparency" in image.info:
        # Before resizing, lest the colour hidden under transparent pixels bleeds into their neighbours.
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")

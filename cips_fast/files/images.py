"""Reading image files of all kinds as 8-bit RGB, by one rule for training data and for the pictures of commands."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

# TGA is left out, since it has no signature, and EPS, since it is a program that Pillow would let run. Some builds of
# Pillow do not have all of these formats.
Image.init()
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
FORMATS = tuple(name for name in FORMATS if name in Image.OPEN)
# What Pillow and zipfile raise for damaged, encrypted or hostile files.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError, MemoryError),
    *(struct.error, zlib.error, zipfile.BadZipFile, Image.DecompressionBombError),
)

EXIF_ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
KEY_DEPTHS = ("1", "L", "RGB")  # modes of PNGs whose transparent colour is stored with the depth of the file
STRAY_SHARE = 0.25  # if at most this share of a float picture's positive pixels lies above 1, the range is 0 … 1

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
JPEG_START = b"\xff\xd8"
JPEG_SCAN = 0xDA
# APP1 to APP13, APP15 and comments. APP0 and APP14 say how to read the colours.
JPEG_METADATA = (*range(0xE1, 0xEE), 0xEF, 0xFE)
MAX_REPAIR_BYTES = 2**28  # a file whose metadata is damaged is held in memory as a whole


def open_rgb(path: Path) -> Image.Image:
    """The image file at a path as RGB; see `read_rgb`.

    Raises:
        ValueError: it is not a readable image; the message is the reason, in one short line.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise OSError("it is not a file")
        with open(path, "rb") as file:
            return read_rgb(file)
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None
    except UNREADABLE as error:
        raise ValueError(reason_of(error)) from None


def decode_image(file: BinaryIO, resolution: int) -> np.ndarray:
    """The central square of an image file, resized with antialiasing: uint8 [R, R, 3], RGB in 0 … 255.

    Args:
        file: a seekable image file; see `read_rgb` for what its pixels mean.
        resolution: R in pixels.

    Raises:
        UNREADABLE: one of these, if the file is not a readable image.
    """
    rgb = read_rgb(file, least_side=3 * resolution)
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    square = rgb.crop((left, top, left + side, top + side))
    return np.array(square.resize((resolution, resolution), Image.Resampling.LANCZOS, reducing_gap=3.0))


def read_rgb(file: BinaryIO, least_side: int | None = None) -> Image.Image:
    """An image file as RGB with 8 bits a channel, rotated as its EXIF says, with white behind transparent pixels.

    - Integers of 16 and 32 bits are taken to range over 0 … 65535: they are scaled by 1/257 and clipped.
    - Floats range over 0 … 1, or over 0 … 255 if more than a quarter of the finite positive pixels exceed 1; values
      outside of the range are clipped. Pixels that are NaN or infinite get the median of the finite ones, or black if
      no pixel is finite.
    - A transparent colour (PNG's tRNS) is compared with the depth of the file.
    - Of an animation, the first picture is read.
    - Damaged metadata (EXIF, ICC, XMP, text, resolution) is ignored; damaged EXIF does not rotate the image.

    Args:
        file: a seekable image file in one of FORMATS.
        least_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size if its sides keep at least this many pixels.

    Raises:
        UNREADABLE: one of these, if the file is not a readable image.
    """
    try:
        return _read(file, least_side)
    except Image.DecompressionBombError:
        raise
    except UNREADABLE as error:
        try:
            return _read(_without_metadata(file), least_side, metadata=False)
        except UNREADABLE:
            raise error from None  # the pixels are damaged, or the file is not an image at all


def reason_of(error: BaseException) -> str:
    """Why a file was unreadable, in one short line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _read(file: BinaryIO, least_side: int | None, metadata: bool = True) -> Image.Image:
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        if not metadata:
            image.getexif = Image.Exif  # returns empty EXIF; Pillow itself calls it while it loads a TIFF
        if least_side is not None:
            image.draft(None, (least_side, least_side))
        stored_as = _stored_as(image)
        image.load()
        turn = TURNS.get(_orientation(image))
        rgb = _to_rgb(image, stored_as, file)
    return rgb if turn is None else rgb.transpose(turn)


def _stored_as(image: Image.Image) -> str:
    """Pillow's name for the format of pixels in the file, such as L;4 for grey of 4 bits; lost after loading."""
    form = image.tile[0][3] if image.tile else ""
    return form if isinstance(form, str) else str(form[0]) if form else ""


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 if EXIF is damaged. Call it after loading: Pillow rotates a TIFF by itself."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except UNREADABLE:
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image, stored_as: str, file: BinaryIO) -> Image.Image:
    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # "I;16" and its variants, or "I" for 32 bits
        return _from_integers(image, stored_as, key)
    if image.mode == "F":
        return _from_floats(image)
    if image.mode[-1] in "Aa" or key is not None:
        if stored_as == "RGB;16B":
            return _on_white(image, _is_key_of_16_bits(image, file, key))
        if image.format == "PNG" and image.mode in KEY_DEPTHS:
            image.info["transparency"] = _eight_bit_key(key, stored_as)
        # Before resizing, so that the hidden colour of transparent pixels does not mix into their neighbours.
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_integers(image: Image.Image, stored_as: str, key: int | None) -> Image.Image:
    values = np.asarray(image)
    if stored_as.startswith("I;32") and "S" not in stored_as:  # Pillow has no unsigned pixels of 32 bits
        values = values.view(np.uint32)
    grey = (values.astype(np.int64).clip(0, 65535) + 128) // 257
    rgb = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    return rgb if key is None else _on_white(rgb, values == key)


def _from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    finite = np.isfinite(values)
    positive = values[finite & (values > 0)]
    top = 255 if (positive > 1).sum() > STRAY_SHARE * len(positive) else 1
    filled = np.where(finite, values, np.median(values[finite]) if finite.any() else 0)
    grey = filled.clip(0, top) * (255 / top)
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _eight_bit_key(key: int | tuple[int, ...], stored_as: str) -> int | tuple[int, ...]:
    """A transparent colour on the scale of Pillow's pixels; bits beyond the depth of the file do not count."""
    if isinstance(key, tuple):
        return tuple(channel & 255 for channel in key)
    if stored_as == "1":
        return 255 if key else 0
    top = {"L;2": 3, "L;4": 15}.get(stored_as, 255)
    return (key & top) * 255 // top


def _is_key_of_16_bits(image: Image.Image, file: BinaryIO, key: tuple[int, ...]) -> np.ndarray:
    """Where a PNG with 16 bits a channel has its transparent colour, bool [H, W]. Pillow keeps only the high bytes."""
    file.seek(0)
    with Image.open(file, formats=("PNG",)) as again:
        codec, box, offset, _ = again.tile[0]
        again.tile = [(codec, box, offset, "RGB;16L")]  # swaps the bytes of each pair, so that the low ones are kept
        low = np.asarray(again)
    key = np.array(key)
    return ((np.asarray(image) == key >> 8) & (low == key & 255)).all(-1)


def _on_white(rgb: Image.Image, transparent: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(transparent[..., None], np.uint8(255), np.asarray(rgb)))


def _without_metadata(file: BinaryIO) -> BinaryIO:
    """A PNG or JPEG without all that its pixels do not need; any other file as it is."""
    file.seek(0)
    start = file.read(len(PNG_START))
    file.seek(0)
    parts = _png_pixels(file) if start == PNG_START else _jpeg_pixels(file) if start[:2] == JPEG_START else None
    if parts is None:
        return file
    kept = io.BytesIO()
    for part in parts:
        if kept.tell() + len(part) > MAX_REPAIR_BYTES:
            raise ValueError(f"metadata is damaged, and the file is longer than {MAX_REPAIR_BYTES} bytes")
        kept.write(part)
    return kept


def _png_pixels(file: BinaryIO) -> Iterator[bytes]:
    yield file.read(len(PNG_START))
    kind = b""
    while kind != b"IEND":
        header = file.read(8)
        length, kind = struct.unpack(">I4s", header)
        if kind in PNG_PIXELS:
            yield header
            yield file.read(min(length + 4, MAX_REPAIR_BYTES))  # with the checksum
        else:
            file.seek(length + 4, io.SEEK_CUR)


def _jpeg_pixels(file: BinaryIO) -> Iterator[bytes]:
    yield file.read(len(JPEG_START))
    marker = 0
    while marker != JPEG_SCAN:
        header = file.read(4)
        start, marker, length = struct.unpack(">BBH", header)
        if start != 0xFF or length < 2:
            raise ValueError("damaged JPEG markers")
        if marker in JPEG_METADATA:
            file.seek(length - 2, io.SEEK_CUR)
        else:
            yield header
            yield file.read(length - 2)
    yield file.read(MAX_REPAIR_BYTES)

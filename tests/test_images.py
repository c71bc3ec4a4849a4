"""Reading pictures: transparent colours at every depth, ranges of integers and floats, damaged metadata."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from cips_fast.files.images import UNREADABLE, read_rgb

from .pictures import picture

GREY_KIND, RGB_KIND, PALETTE_KIND = 0, 2, 3


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(depth, kind, rows, *chunks):
    """A PNG of packed rows, with chunks (kind, content) before the pixels."""
    channels = 3 if kind == RGB_KIND else 1
    width = len(rows[0]) * 8 // (depth * channels)
    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def pixels_of(content):
    return np.asarray(read_rgb(io.BytesIO(content)))


def greys_of(content):
    """The grey of every pixel of a picture without colours."""
    pixels = pixels_of(content)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


def big(*numbers):
    return struct.pack(f">{len(numbers)}H", *numbers)


# Depth, packed rows, the transparent grey, and the greys that are right.
GREY_KEYS = {
    "1-bit-black": (1, [b"\x55"], 0, [255] * 8),
    "1-bit-white": (1, [b"\x55"], 1, [0, 255] * 4),
    "2-bit": (2, [b"\x1b"], 2, [0, 85, 255, 255]),
    "2-bit-bits-beyond": (2, [b"\x1b"], 0xFF01, [0, 255, 170, 255]),
    "4-bit": (4, [b"\x05\xa0"], 5, [0, 255, 170, 0]),
    "4-bit-not-scaled": (4, [b"\x05\xa0"], 0, [255, 85, 170, 255]),
    "8-bit": (8, [bytes([16, 17, 200])], 16, [255, 17, 200]),
    "16-bit": (16, [big(0x1000, 0x1001, 0x8080)], 0x1000, [255, 16, 128]),
    "16-bit-low-byte": (16, [big(0x1000, 0x1001, 0x8080)], 0x1001, [16, 255, 128]),
}


@pytest.mark.parametrize("name", GREY_KEYS)
def test_a_transparent_grey_is_white(name):
    depth, rows, key, want = GREY_KEYS[name]
    assert greys_of(png(depth, GREY_KIND, rows, (b"tRNS", big(key)))) == [want]


@pytest.mark.parametrize(
    ("depth", "row", "key", "want"),
    [
        (8, bytes([1, 2, 3, 1, 2, 4]), (1, 2, 3), [[255] * 3, [1, 2, 4]]),
        (16, big(0x0110, 0x0220, 0x0330, 0x0110, 0x0220, 0x0331), (0x0110, 0x0220, 0x0330), [[255] * 3, [1, 2, 3]]),
        (16, big(0x0110, 0x0220, 0x0330, 0x0110, 0x0220, 0x0331), (0x0110, 0x0220, 0x0331), [[1, 2, 3], [255] * 3]),
        (16, big(0x0110, 0x0220, 0x0330, 0x0110, 0x0220, 0x0331), (1, 2, 3), [[1, 2, 3], [1, 2, 3]]),
    ],
)
def test_a_transparent_colour_is_compared_at_its_own_depth(depth, row, key, want):
    assert pixels_of(png(depth, RGB_KIND, [row], (b"tRNS", big(*key)))).tolist() == [want]


@pytest.mark.parametrize(("depth", "row"), [(1, b"\x40"), (2, b"\x10"), (4, b"\x01"), (8, b"\0\1")])
def test_a_palette_has_its_own_transparency(depth, row):
    palette = (b"PLTE", bytes([10, 20, 30, 40, 50, 60]))
    first_two = pixels_of(png(depth, PALETTE_KIND, [row], palette, (b"tRNS", bytes([255, 0]))))[0, :2]
    assert first_two.tolist() == [[10, 20, 30], [255] * 3]
    half = pixels_of(png(depth, PALETTE_KIND, [row], palette, (b"tRNS", bytes([51, 255]))))[0, :2]
    assert half.tolist() == [[206, 208, 210], [40, 50, 60]]  # 255 - 0.2·(255 - colour)


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, np.asarray(values), photometric="minisblack", **options)
    return file.getvalue()


RAMP = np.linspace(0, 1, 64).reshape(8, 8)
# Each a float picture and the greys that are right.
FLOATS = {
    "unit": (RAMP, np.round(RAMP * 255)),
    "byte": (RAMP * 255, np.round(RAMP * 255)),
    "negative": (RAMP - 0.5, np.round((RAMP - 0.5).clip(0) * 255)),
    "highlights": (RAMP * 1.1, np.round((RAMP * 1.1).clip(0, 1) * 255)),
    "black": (RAMP * 0, RAMP * 0),
    "stars": (np.where(RAMP > 0.97, 200.0, 0), np.where(RAMP > 0.97, 200, 0)),
    "all-nan": (RAMP * np.nan, RAMP * 0),
    "all-infinite": (RAMP + np.inf, RAMP * 0),
}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("byteorder", "<>")
def test_the_range_of_floats(name, byteorder):
    values, want = FLOATS[name]
    assert greys_of(tiff(values.astype(np.float32), byteorder=byteorder)) == want.tolist()


@pytest.mark.parametrize("stray", [np.inf, -np.inf, np.nan, 1e30, 255.0, -1e30])
@pytest.mark.parametrize("scale", [1, 255])
def test_stray_pixels_do_not_decide_the_range(stray, scale):
    values = np.full((9, 9), 0.5 * scale, np.float32)
    values[0, 0] = stray
    got = np.array(greys_of(tiff(values)))
    assert (got.ravel()[1:] == 128).all()
    assert got[0, 0] == (255 if stray in (1e30, 255.0) else 0 if stray == -1e30 else 128)


@pytest.mark.parametrize(
    ("dtype", "values", "want"),
    [
        (np.uint16, [0, 128, 129, 32896, 65535], [0, 0, 1, 128, 255]),
        (np.int16, [-32768, -1, 0, 257, 32767], [0, 0, 0, 1, 127]),
        (np.int32, [-5, 0, 32896, 65535, 2**31 - 1], [0, 0, 128, 255, 255]),
        (np.uint32, [0, 257, 65535, 2**31, 2**32 - 1], [0, 1, 255, 255, 255]),
    ],
)
def test_integers_range_over_16_bits_whatever_the_picture_holds(dtype, values, want):
    assert greys_of(tiff(np.array([values], dtype))) == [want]


def exif(orientation=6):
    block = Image.Exif()
    block[0x0112] = orientation
    block.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    return block.tobytes()


RGB = picture(3, 16, 24)
DAMAGED = {
    "PNG-exif-no-header": ("PNG", {"exif": b"garbage!"}),
    "PNG-exif-cut": ("PNG", {"exif": b"Exif\0\0MM\0*\0\0"}),
    "PNG-exif-half": ("PNG", {"exif": exif()[: len(exif()) // 4]}),
    "PNG-icc": ("PNG", {"icc_profile": b"no profile"}),
    "JPEG-exif-no-header": ("JPEG", {"exif": b"garbage!"}),
    "JPEG-exif-cut": ("JPEG", {"exif": b"Exif\0\0MM\0*\0\0"}),
    "JPEG-icc": ("JPEG", {"icc_profile": b"no profile"}),
    "WEBP-exif": ("WEBP", {"exif": b"Exif\0\0MM\0*\0\0", "lossless": True}),
    "WEBP-xmp": ("WEBP", {"xmp": b"\xff\xfe<<<", "lossless": True}),
    "TIFF-icc": ("TIFF", {"icc_profile": b"no profile"}),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.filterwarnings("ignore")  # Pillow's own about the damage
def test_damaged_metadata_costs_no_pixel_and_does_not_turn(name):
    kind, options = DAMAGED[name]
    with_it, without = io.BytesIO(), io.BytesIO()
    Image.fromarray(RGB).save(with_it, kind, **options)
    Image.fromarray(RGB).save(without, kind, **{key: value for key, value in options.items() if key == "lossless"})
    np.testing.assert_array_equal(pixels_of(with_it.getvalue()), pixels_of(without.getvalue()))


BAD_CHUNKS = {
    "text-checksum": chunk(b"tEXt", b"Title\0hello")[:-1] + b"?",
    "icc-method": chunk(b"iCCP", b"name\0\7content"),
    "icc-empty": chunk(b"iCCP", b""),
    "resolution-short": chunk(b"pHYs", b"\0\0"),
    "text-bomb": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70_000_000))),
    "exif-checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")[:-1] + b"?",
    "time-short": chunk(b"tIME", b"\0"),
    "gamma-short": chunk(b"gAMA", b"\0"),
    "colours-short": chunk(b"cHRM", b"\0\1"),
    "intent-empty": chunk(b"sRGB", b""),
    "animation-short": chunk(b"acTL", b"\0"),
}


@pytest.mark.parametrize("name", BAD_CHUNKS)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_bad_chunk_beside_the_pixels_is_left_out(name, before):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    whole = file.getvalue()
    place = whole.index(b"IDAT") - 4 if before else len(whole) - 12
    content = whole[:place] + BAD_CHUNKS[name] + whole[place:]
    np.testing.assert_array_equal(pixels_of(content), RGB)


@pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xED, 0xFE])
@pytest.mark.parametrize(
    "content", [b"", b"Exif\0\0", b"MPF\0MM\0*\0\0\0\x08\0\7", b"Photoshop 3.0\x008BIM\4", b"\xff" * 40]
)
def test_a_bad_segment_of_a_jpeg_is_left_out(marker, content):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "JPEG")
    whole = file.getvalue()
    segment = struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    np.testing.assert_array_equal(pixels_of(whole[:2] + segment + whole[2:]), pixels_of(whole))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tag", [0x8769, 0x8825, 0xA005])  # EXIF, places and interoperability
@pytest.mark.parametrize("target", [0, 3, 8, 500, 2**32 - 1])
def test_a_tiff_with_a_pointer_to_nowhere_is_taken(tag, target):
    content = tiff(RGB[..., 0], extratags=[(tag, 4, 1, target, True)])
    np.testing.assert_array_equal(pixels_of(content)[..., 1], RGB[..., 0])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_sound_exif_turns_the_picture_once(kind):
    file, plain = io.BytesIO(), io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(RGB).save(file, kind, exif=exif(6), **options)
    Image.fromarray(RGB).save(plain, kind, **options)
    np.testing.assert_array_equal(pixels_of(file.getvalue()), np.rot90(pixels_of(plain.getvalue()), -1))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_does_not_turn(orientation):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG", exif=exif(orientation))
    np.testing.assert_array_equal(pixels_of(file.getvalue()), RGB)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_damaged_pixels_are_still_refused(kind):
    file = io.BytesIO()
    Image.fromarray(picture(1, 200, 200)).save(file, kind)
    with pytest.raises(UNREADABLE):
        pixels_of(file.getvalue()[: len(file.getvalue()) // 2])
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"\xff\xd8\xff\xe1\0\0", b"\xff\xd8" + b"\xff" * 20):
        with pytest.raises(UNREADABLE):
            pixels_of(content)

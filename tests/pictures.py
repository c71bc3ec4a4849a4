"""Pictures to make data of, and what a source should make of them."""

from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
R = 32


def picture(seed=0, height=40, width=60):
    """A smooth random RGB picture, uint8 [height, width, 3], lossy formats keep it within a few levels."""
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def save(path, seed=0, **options):
    Image.fromarray(picture(seed)).save(path, **options)


def read(path):
    """A picture's pixels, uint8 [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def expected(pixels, resolution=R):
    """The central square of uint8 [H, W, 3], resized independently of the code under test."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return np.asarray(square.resize((resolution, resolution), Image.Resampling.LANCZOS))


def assert_close(got, want, levels):
    assert np.abs(got.astype(int) - want.astype(int)).max() <= levels


def assert_is_image(image, resolution):
    assert type(image) is np.ndarray
    assert image.shape == (resolution, resolution, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable

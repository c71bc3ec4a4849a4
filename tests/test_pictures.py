"""Colours to pixels, pixels to files."""

import numpy as np
import pytest
import torch
from PIL import Image

from cips_fast.files import pictures


def test_colours_are_rounded_and_clipped():
    rgb = torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    pixels = pictures.to_pixels(rgb.expand(3, 1, -1))
    assert pixels[0, :, 1].tolist() == [0, 0, 128, 191, 255, 255]


def test_a_sheet_places_pictures_row_by_row():
    ones = [np.full((2, 3, 3), index, np.uint8) for index in range(1, 6)]
    sheet = pictures.sheet(ones, 3)
    assert sheet.shape == (4, 9, 3)
    assert sheet[::2, ::3, 0].tolist() == [[1, 2, 3], [4, 5, 0]]


@pytest.mark.parametrize(("ending", "most"), [("png", 0), ("tif", 0), ("jpg", 6), ("webp", 12)])
def test_a_picture_comes_back_from_a_file(tmp_path, ending, most):
    rows, columns = np.mgrid[:64, :40].astype(np.uint8)
    pixels = np.stack([rows * 3, columns * 5, rows + columns], -1)
    path = tmp_path / f"picture.{ending}"
    pictures.save(path, pixels)
    with Image.open(path) as image:
        found = np.asarray(image.convert("RGB"))
    assert np.abs(found.astype(int) - pixels).max() <= most
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "wide.webp"
    path.write_bytes(b"before")
    with pytest.raises(ValueError, match="WEBP holds 16383 a side"):
        pictures.save(path, np.zeros((1, 16384, 3), np.uint8))
    assert path.read_bytes() == b"before"
    with pytest.raises(ValueError, match="must end in one of"):
        pictures.save(tmp_path / "picture.bmp", np.zeros((1, 1, 3), np.uint8))

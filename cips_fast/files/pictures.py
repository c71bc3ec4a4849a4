"""Colours as 8-bit pictures, and writing those as PNG, JPEG, WebP or TIFF, by the file's ending."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checks import ArgumentError
from .atomic import whole_file

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
OPTIONS = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}, "TIFF": {"compression": "tiff_deflate"}}
NOT_FINITE = "colours are not finite: the network has weights that are not finite, or truncation is too large"
MAX_SIDE_PIXELS = {"JPEG": 65500, "WEBP": 16383}  # of formats that have a limit


def to_pixels(rgb: Tensor) -> np.ndarray:
    """Colours, nominally in [-1, 1], [3, H, W] -> uint8 [H, W, 3]; rounded, and clipped beyond that range.

    Raises:
        FloatingPointError: a colour is infinite or not a number.
    """
    rgb = rgb.detach().float()
    if not bool(rgb.isfinite().all()):
        raise FloatingPointError(NOT_FINITE)
    pixels = rgb.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def sheet(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size in a grid, row by row, each uint8 [H, W, 3]; the rest of the last row is black."""
    missing = -len(pictures) % columns
    pictures = [*pictures, *[np.zeros_like(pictures[0])] * missing]
    rows = [np.concatenate(pictures[start : start + columns], 1) for start in range(0, len(pictures), columns)]
    return np.concatenate(rows, 0)


def format_of(path: str | Path, height: int = 1, width: int = 1) -> str:
    """The format that the path's ending names.

    Raises:
        ValueError: the ending names no format, or the format cannot hold a picture of this size.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise ArgumentError("out", f"got {str(path)!r}, must end in one of {', '.join(FORMATS)}")
    kind = FORMATS[ending]
    longest = MAX_SIDE_PIXELS.get(kind)
    if longest is not None and max(height, width) > longest:
        raise ArgumentError(
            "out", f"got {width}x{height} for {str(path)!r}, {kind} holds {longest} a side: use .tif or .png"
        )
    return kind


def save(path: str | Path, pixels: np.ndarray) -> None:
    """Write a picture uint8 [H, W, 3] whole or not at all.

    Raises:
        ValueError: the ending names no format, or the format cannot hold a picture of this size.
        OSError: the file cannot be written.
    """
    kind = format_of(path, *pixels.shape[:2])
    from PIL import Image  # here, since a machine that only runs networks need not have it

    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format=kind, **OPTIONS.get(kind, {}))

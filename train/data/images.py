"""What all image sources share: the protocol, the error and the cache folder."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Protocol

import numpy as np

from cips_fast.files.atomic import TEMPORARY
from cips_fast.kernels.autotune import cache_folder


class DataError(ValueError):
    """Images cannot be used as asked; the message says in one line what was given and what it may be."""


class ImageSource(Protocol):
    """A fixed list of RGB images, either all square or all panoramas. It can be pickled and used in DataLoader workers.

    Attributes:
        name: short name for logs and file names.
        resolution: height R of every image in pixels. The width is R, or 2R for panoramas.
    """

    name: str
    resolution: int

    def __len__(self) -> int: ...

    def load(self, index: int) -> np.ndarray:
        """Image `index` of 0 … len - 1: uint8 [R, R|2R, 3], RGB in 0 … 255, C-contiguous; a copy that may be changed.

        Raises:
            IndexError: index < 0 or index ≥ len.
        """
        ...


def cache_root(cache_dir: Path | None = None) -> Path | None:
    """The cache folder: `cache_dir`, or else the package's; None if the user has no home folder."""
    try:
        return Path(cache_dir).expanduser().absolute() if cache_dir else cache_folder()
    except (OSError, RuntimeError):
        return None


def remove_stale(folder: Path, seconds: float) -> None:
    """Remove the temporary files that killed processes left in a folder; younger ones may still be written.

    Those of earlier versions end in .tmp.
    """
    for file in folder.iterdir():
        if TEMPORARY.fullmatch(file.name) or file.suffix == ".tmp":
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                if time.time() - file.stat().st_mtime > seconds:
                    file.unlink()


def check_index(index: int, length: int) -> None:
    """Raise IndexError unless 0 ≤ index < length."""
    if not 0 <= index < length:
        raise IndexError(f"image {index} of {length}: the index must be in 0 … {length - 1}")

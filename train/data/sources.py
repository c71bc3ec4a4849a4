"""Opening training images by name."""

from __future__ import annotations

import stat
from pathlib import Path

from cips_fast.files.images import reason_of
from cips_fast.geometry import GEOMETRIES

from . import bluemarble, landscapes
from .bluemarble import BlueMarbleMap, BlueMarbleSource
from .folder import FolderSource
from .images import DataError, ImageSource, cache_root
from .landscapes import LandscapeSource, missing_packages

CHOICES = "landscapes, bluemarble, a folder or a .zip file"
SPLITS = ("train", "heldout")


def open_source(
    data: str, resolution: int, *, geometry: str = "plane", cache_dir: Path | None = None, split: str = "train"
) -> ImageSource:
    """Open the images named by `data`, R×R pixels each, or R×2R for a geometry whose images are twice as wide as high.

    Args:
        data: "landscapes" (drawn here, CC0), "bluemarble" (satellite, needs the extra of that name), the path of a
            folder, or the path of a .zip file. For a folder called like one of the two names write `./landscapes`.
        resolution: R ≥ 1; for "landscapes" up to 8192; for "bluemarble" 64 … 512 and a multiple of 4, or up to 2700
            for panoramas.
        geometry: a key of `cips_fast.geometry.GEOMETRIES`. The only images twice as wide as high are "bluemarble", the
            whole map.
        cache_dir: where drawn and decoded images are kept; unless given, the environment variable CIPS_FAST_CACHE, then
            the user's cache folder.
        split: "train" or "heldout", which share no image; a folder or .zip file has only "train".

    Raises:
        DataError: there is no such data, split or resolution, or not one readable image.
    """
    check_source(data, resolution, geometry=geometry, split=split)
    if _is_panorama(geometry):
        return BlueMarbleMap(resolution)
    if data == "landscapes":
        if missing := " ".join(missing_packages()):
            raise DataError(f"landscapes are drawn by packages that are not installed: pip install {missing}")
        return LandscapeSource(resolution, cache_root(cache_dir), split=split)
    if data == "bluemarble":
        return BlueMarbleSource(resolution, split=split)
    return FolderSource(Path(data).expanduser(), resolution, cache_root(cache_dir))


def check_source(data: str, resolution: int, *, geometry: str = "plane", split: str = "train") -> None:
    """Check everything that is known before an image is read.

    Args:
        data, resolution, geometry, split: as in `open_source`.

    Raises:
        DataError: there is no such data, split or resolution.
    """
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1:
        raise DataError(f"resolution is {resolution!r}; it must be a whole number of pixels, 1 or more")
    if split not in SPLITS:
        raise DataError(f"split is {split!r}; it may be {' or '.join(SPLITS)}")
    if _is_panorama(geometry) and data != "bluemarble":
        raise DataError(f"{data!r} has no panoramas of 360 degrees; for --geometry {geometry} it may be bluemarble")
    if data == "landscapes":
        if resolution > landscapes.MAX_RESOLUTION:
            raise DataError(
                f"landscapes have no resolution {resolution}: --res may be up to {landscapes.MAX_RESOLUTION}"
            )
    elif data == "bluemarble":
        bluemarble.check_resolution(resolution, panorama=_is_panorama(geometry))
    else:
        _check_path(data, split)


def _is_panorama(geometry: str) -> bool:
    """Whether the geometry's images are twice as wide as high."""
    return GEOMETRIES[geometry].aspect == 2


def _check_path(data: str, split: str) -> None:
    try:
        if not data:
            raise FileNotFoundError
        mode = Path(data).expanduser().stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no data called {data!r}: there is no such folder or file; it may be {CHOICES}") from None
    except (OSError, ValueError, RuntimeError) as error:  # no permission, links in a loop, a long name, no such user
        raise DataError(f"{data!r} cannot be opened ({reason_of(error)}); it may be {CHOICES}") from None
    if not stat.S_ISDIR(mode) and not (stat.S_ISREG(mode) and data.lower().endswith(".zip")):
        raise DataError(f"{data!r} is neither a folder nor a .zip file; data may be {CHOICES}")
    if split != "train":
        raise DataError(f"{data!r} has no split {split!r}; only landscapes and bluemarble have one, a folder is whole")

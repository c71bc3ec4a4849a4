"""Opening training images by name."""

from __future__ import annotations

from pathlib import Path

from .bluemarble import BlueMarbleMap, BlueMarbleSource
from .folder import FolderSource
from .images import DataError, ImageSource, cache_root
from .landscapes import LandscapeSource, missing_packages

CHOICES = "landscapes, bluemarble, a folder or a .zip file"
SPLITS = ("train", "heldout")


def open_source(
    data: str, resolution: int, *, geometry: str = "plane", cache_dir: Path | None = None, split: str = "train"
) -> ImageSource:
    """Open the images named by `data`, R×R pixels each, or panoramas, R×2R.

    Args:
        data: "landscapes" (drawn here, CC0), "bluemarble" (satellite, needs the extra of that name), the path of a
            folder, or the path of a .zip file. The two names win over a folder so called: write `./landscapes` for it.
        resolution: R ≥ 1; for "bluemarble" 64 … 512 and a multiple of 4.
        geometry: "plane", or "cylinder" for panoramas, of which there is "bluemarble", the whole map.
        cache_dir: where drawn and decoded images are kept; without it the environment variable CIPS_FAST_CACHE, then
            the user's cache folder.
        split: "train" or "heldout", which share no image; a folder or .zip file has only "train".

    Raises:
        DataError: there is no such data, split or resolution, or not one readable image.
    """
    if isinstance(resolution, bool) or not isinstance(resolution, int) or resolution < 1:
        raise DataError(f"resolution is {resolution!r}; it must be a whole number of pixels, 1 or more")
    if split not in SPLITS:
        raise DataError(f"split is {split!r}; it may be {' or '.join(SPLITS)}")
    if geometry == "cylinder":
        if data != "bluemarble":
            raise DataError(f"{data!r} has no panoramas of 360°; for --geometry cylinder it may be bluemarble")
        return BlueMarbleMap(resolution)
    if data == "landscapes":
        if missing := " ".join(missing_packages()):
            raise DataError(f"landscapes are drawn by packages that are not installed: pip install {missing}")
        return LandscapeSource(resolution, cache_root(cache_dir), split=split)
    if data == "bluemarble":
        return BlueMarbleSource(resolution, split=split)
    return _open_path(data, resolution, cache_dir, split)


def _open_path(data: str, resolution: int, cache_dir: Path | None, split: str) -> ImageSource:
    path = Path(data).expanduser()
    if not data or not path.exists():
        raise DataError(f"no data called {data!r}: there is no such folder or file; it may be {CHOICES}")
    if not path.is_dir() and path.suffix.lower() != ".zip":
        raise DataError(f"{data!r} is neither a folder nor a .zip file; data may be {CHOICES}")
    if split != "train":
        raise DataError(f"{data!r} has no split {split!r}; only landscapes and bluemarble have one, a folder is whole")
    return FolderSource(path, resolution, cache_root(cache_dir))

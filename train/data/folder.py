"""Images of a folder or a .zip file, decoded once into a cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from cips_fast.files.atomic import move_into_place, temporary_path
from cips_fast.files.images import FORMATS, UNREADABLE, decode_image, reason_of

from .folder_cache import FolderCache, read_cache, write_cache
from .images import DataError, check_index, remove_stale

DECODER_VERSION = 2  # part of the cache's key: raise it when a change gives the same file other pixels
CHUNK_IMAGES = 64  # decoded before they are written: 50 MB at R = 512
STALE_SECONDS = 24 * 3600.0
NAMES_SHOWN = 5  # of bad files, in the warning
SYSTEM_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}


class FolderSource:
    """Every image in a folder and its sub-folders, or in a .zip file, as R×R pixels, sorted by name.

    An image is read as `cips_fast.files.images.read_rgb` says, cropped to its central square and resized with
    antialiasing. Files that are not readable images are left out, with one warning.

    The first time, all files are decoded into `cache_root`/folders, 3·R² bytes an image. Later, only the names, sizes
    and times of the files are compared. Old caches may be deleted. Without a cache folder, or without room in it,
    images are decoded each time, with one warning. If an image in the cache is damaged, its file is decoded again.

    Raises DataError if the folder or file cannot be read or holds no readable image.
    """

    def __init__(self, path: Path, resolution: int, cache_root: Path | None) -> None:
        path = path.resolve()
        self.name = path.stem if path.is_file() else path.name
        self.resolution = resolution
        self._files = _ZipFiles(path) if path.is_file() else _FolderFiles(path)
        entries = self._files.entries()
        names = [entry[0] for entry in entries]
        key = json.dumps([DECODER_VERSION, str(path), resolution, entries])
        key = hashlib.sha256(key.encode()).hexdigest()[:16]
        cache = f"folders/{self.name[:40]}-{resolution}-{key}.npy"
        self._cache_path = None if cache_root is None else Path(cache_root) / cache
        bad = self._bad_in_cache()
        if bad is None:
            bad = _decode_all(self._files, names, resolution, self._cache_path)
        self._names = [name for name in names if name not in bad]
        _report(path, len(names), bad)
        self._cache = self._open_cache()
        self._warned = False

    def __len__(self) -> int:
        return len(self._names)

    def load(self, index: int) -> np.ndarray:
        """Image `index`: uint8 [R, R, 3], RGB in 0 … 255.

        Raises:
            IndexError: the index is outside of 0 … len - 1.
            DataError: there is no cache, and the file has become unreadable since the source was opened.
        """
        check_index(index, len(self))
        if self._cache is not None:
            pixels = self._cache.image(index)
            if pixels is not None:
                return pixels
            self._report_damage()
        pixels, reason = _try_decode(self._files, self._names[index], self.resolution)
        if pixels is None:
            raise DataError(f"{self._names[index]} was readable when the data was opened and no longer is: {reason}")
        return pixels

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._cache = self._open_cache()

    def _open_cache(self) -> FolderCache | None:
        cache = None if self._cache_path is None else read_cache(self._cache_path, self.resolution)
        return cache if cache is not None and len(cache) == len(self) else None

    def _bad_in_cache(self) -> dict[str, str] | None:
        """The files that were unreadable when the cache was written, and why; None if it has to be written."""
        cache = None if self._cache_path is None else read_cache(self._cache_path, self.resolution)
        # A file that failed before need not be damaged: perhaps it could not be reached.
        if cache is None or any(_try_decode(self._files, name, self.resolution)[0] is not None for name in cache.bad):
            return None
        return cache.bad

    def _report_damage(self) -> None:
        """Warn once that the cache is damaged, and remove it, so that the next opening writes it again."""
        if not self._warned:
            self._warned = True
            warnings.warn(f"the cache {self._cache_path} is damaged: its images are decoded again", stacklevel=3)
            with contextlib.suppress(OSError):
                self._cache_path.unlink()


class _FolderFiles:
    """The files of a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[tuple[str, int, int]]:
        """(name, size, time of change) of every visible file, sorted by name; each linked folder is entered once."""
        found: list[tuple[str, int, int]] = []
        seen: set[str] = set()
        for folder, subfolders, names in os.walk(self.path, followlinks=True, onerror=self._refuse):
            if (real := os.path.realpath(folder)) in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(filter(_is_visible, subfolders))
            for name in filter(_is_visible, names):
                file = Path(folder, name)
                found += self._entry(file, file.relative_to(self.path).as_posix())
        return sorted(found)

    def open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")

    def _entry(self, file: Path, name: str) -> list[tuple[str, int, int]]:
        try:
            status = file.stat()
        except OSError:
            return [(name, -1, -1)]  # a dangling link: opening it fails, too, and is reported
        # Opening a pipe or a device could block.
        return [(name, status.st_size, status.st_mtime_ns)] if stat.S_ISREG(status.st_mode) else []

    def _refuse(self, error: OSError) -> None:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}") from error


class _ZipFiles:
    """The members of a .zip file."""

    _archive, _pid = None, 0

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[tuple[str, int, int]]:
        """(name, size, checksum) of every visible file, sorted by name."""
        try:
            members = self._opened().infolist()
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path} is not a readable .zip file: {error}") from error
        visible = [m for m in members if not m.is_dir() and all(map(_is_visible, m.filename.split("/")))]
        return sorted({m.filename: (m.filename, m.file_size, m.CRC) for m in visible}.values())

    def open(self, name: str) -> BinaryIO:
        return self._opened().open(name)

    def _opened(self) -> zipfile.ZipFile:
        # Threads may share one archive. Forked processes may not: they would share its position in the file.
        if self._archive is None or self._pid != os.getpid():
            self._archive, self._pid = zipfile.ZipFile(self.path), os.getpid()
        return self._archive

    def __getstate__(self) -> dict:
        return {"path": self.path}


_Files = _FolderFiles | _ZipFiles


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in SYSTEM_FILES


def _try_decode(files: _Files, name: str, resolution: int) -> tuple[np.ndarray | None, str]:
    """The image, or None and the reason."""
    try:
        with files.open(name) as file:
            return decode_image(file, resolution), ""
    except Image.UnidentifiedImageError:
        return None, "not an image"
    except UNREADABLE as error:
        return None, reason_of(error)


def _decoded(files: _Files, names: list[str], resolution: int) -> Iterator[tuple[str, np.ndarray | None, str]]:
    """(name, image or None, reason) of every file, in order, decoded in threads: Pillow releases Python's lock."""
    bar = tqdm(total=len(names), desc=f"decoding {files.path.name}", unit="img", disable=None)
    # Pillow warns about damaged files one by one; here they are reported together.
    with bar, warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        for start in range(0, len(names), CHUNK_IMAGES):
            chunk = names[start : start + CHUNK_IMAGES]
            results = pool.map(lambda name: _try_decode(files, name, resolution), chunk)
            for name, result in zip(chunk, results, strict=True):
                yield name, *result
            bar.update(len(chunk))


def _decode_all(files: _Files, names: list[str], resolution: int, cache: Path | None) -> dict[str, str]:
    """Decode all files into the cache, or only to find bad ones if there is no cache; the reason for each bad file."""
    try:
        if cache is None:
            raise OSError("there is no home folder; the environment variable CIPS_FAST_CACHE can name another folder")
        return _write_cache(files, names, resolution, cache)
    except OSError as error:
        warnings.warn(
            f"images are decoded each time they are used: cannot write the cache: {reason_of(error)}", stacklevel=4
        )
    return {name: reason for name, pixels, reason in _decoded(files, names, resolution) if pixels is None}


def _write_cache(files: _Files, names: list[str], resolution: int, cache: Path) -> dict[str, str]:
    temporary = temporary_path(cache)
    cache.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(cache.parent, STALE_SECONDS)
    size = 3 * resolution**2 * len(names)
    if shutil.disk_usage(cache.parent).free < size:
        raise OSError(f"{cache.parent} has no room for {size / 1e9:.1f} GB")
    try:
        decoded = _decoded(files, names, resolution)
        with open(temporary, "wb") as file, contextlib.closing(decoded):
            bad = write_cache(file, decoded, len(names), resolution)
        if len(bad) < len(names):
            move_into_place(temporary, cache)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return bad


def _report(path: Path, count: int, bad: dict[str, str]) -> None:
    named = ", ".join(f"{name} ({reason})" for name, reason in list(bad.items())[:NAMES_SHOWN])
    named += f" and {len(bad) - NAMES_SHOWN} more" if len(bad) > NAMES_SHOWN else ""
    if len(bad) == count:
        saw = f"{count} files, none readable: {named}" if count else "0 files"
        raise DataError(f"no images in {path}, which holds {saw}; images may be {', '.join(FORMATS)}")
    if bad:
        warnings.warn(
            f"{path}: left out {len(bad)} of {count} files that are not readable images: {named}", stacklevel=5
        )

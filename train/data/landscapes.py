"""Built-in data: vector landscapes that are drawn here, each of them from its number.

The style `landscape` by DiceBear is in the public domain (CC0 1.0); the package dicebear-styles contains it, and resvg
draws it. The background workers run this file as a program, by its path. It therefore imports nothing from its own
package, which would load PyTorch: workers do not need it.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
import zlib
from collections.abc import Iterable
from functools import cache
from importlib import metadata, resources
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = ("dicebear-core", "dicebear-styles", "resvg-py")
COUNTS = {"train": 5000, "heldout": 500}
MAX_RESOLUTION = 8192  # pixels a side; Pillow would refuse a larger file as a decompression bomb
STALE_SECONDS = 3600.0
# resvg draws a clip path through a mask of the whole canvas, which takes over half of the drawing time. A clip path
# that is the whole canvas cuts nothing off; its only other effect is that of an isolated group, which gives the same
# pixels.
WHOLE_CANVAS = '<rect width="100" height="100" rx="0" ry="0"/></clipPath>'
CLIP = re.compile(r' clip-path="url\(#[^)"]*\)"')


class LandscapeSource:
    """Landscapes of R×R pixels, kept as PNG files below `cache_root` and drawn if they are not there.

    Training image i is drawn from the seed str(i), held-out image i from the seed str(5000 + i), so an image depends
    only on its index, and not on the images that were drawn before. If no cache can be written, images are drawn each
    time, with one warning. If a file in the cache is damaged, it is drawn again.
    """

    name = "landscapes"

    def __init__(self, resolution: int, cache_root: Path | None, *, split: str = "train") -> None:
        self.resolution = resolution
        self._count = COUNTS[split]
        self._first = 0 if split == "train" else COUNTS["train"]
        name = f"landscapes-{metadata.version('dicebear-styles')}-{resolution}"
        self.folder = None if cache_root is None else Path(cache_root) / name
        self._warned = False

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> np.ndarray:
        """Image `index`: uint8 [R, R, 3], RGB in 0 … 255. Raises IndexError if it is outside of 0 … len - 1."""
        seed = self._seed(index)
        if self.folder is not None:
            pixels = _read(_path(self.folder, seed), self.resolution)
            if pixels is not None:
                return pixels
        png = draw(seed, self.resolution)
        try:
            self._make_folder()
            _write(_path(self.folder, seed), png)
        except OSError as error:
            self._warn(error)
        return np.array(Image.open(io.BytesIO(png)).convert("RGB"))

    def is_cached(self, index: int) -> bool:
        """Whether image `index` is in the cache, so that it need not be drawn."""
        return self.folder is not None and _path(self.folder, self._seed(index)).exists()

    def prepare(self, indices: Iterable[int], workers: int) -> Drawing:
        """Start to draw the images among `indices` that are not cached, in this order, in `workers` processes."""
        try:
            self._make_folder()
            _remove_stale(self.folder)
            here = set(os.listdir(self.folder))
            seeds = dict.fromkeys(self._seed(index) for index in indices)
            missing = [seed for seed in seeds if _path(self.folder, seed).name not in here]
            return Drawing(self.folder, self.resolution, missing, workers)
        except OSError as error:
            self._warn(error)
            return Drawing(self.folder, self.resolution, [], workers)

    def _make_folder(self) -> None:
        if self.folder is None:
            raise OSError("there is no home folder; the environment variable CIPS_FAST_CACHE can name another folder")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _seed(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(f"image {index} of {self._count}: the index must be in 0 … {self._count - 1}")
        return self._first + int(index)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"landscapes are drawn each time they are used: cannot write the cache: {error}", stacklevel=3
            )


class Drawing:
    """Background processes that draw landscapes into a folder. They end when this process ends, however it ends.

    Attributes:
        total: how many images were missing at the start.
    """

    def __init__(self, folder: Path | None, resolution: int, seeds: list[int], workers: int) -> None:
        self.total = len(seeds)
        self._folder = folder
        self._names = {_path(folder, seed).name for seed in seeds}
        workers = max(workers, 1)
        shares = [seeds[worker::workers] for worker in range(workers)]
        self._processes = [_start(folder, resolution, share) for share in shares if share]

    @property
    def done(self) -> int:
        """How many of the missing images are there by now, even if other processes drew them.

        The folder is listed, which takes a few milliseconds.
        """
        try:
            return len(self._names & set(os.listdir(self._folder))) if self._names else 0
        except OSError:  # the folder has been removed
            return 0

    @property
    def running(self) -> bool:
        """Whether a process is still drawing. If not, and done < total, the processes failed or were stopped."""
        return any(process.poll() is None for process in self._processes)

    def stop(self) -> None:
        """End the processes and wait for them. Images that are drawn stay. A second call does nothing."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()


def missing_packages() -> list[str]:
    """Those of `PACKAGES` that are not installed."""

    def is_missing(package: str) -> bool:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            return True
        return False

    return list(filter(is_missing, PACKAGES))


def draw(seed: int, resolution: int) -> bytes:
    """Landscape number `seed` as a PNG of `resolution`×`resolution` opaque pixels."""
    import resvg_py  # here, as in `_style`, so that a run whose landscapes are all cached needs no renderer

    png = resvg_py.svg_to_bytes(
        svg_string=_without_idle_clip(_svg(seed)),
        width=resolution,
        height=resolution,
        background="#ffffff",  # today's landscapes cover all of it; this keeps others opaque as well
        skip_system_fonts=True,
    )
    return bytes(png)


def _svg(seed: int) -> str:
    from dicebear import Avatar

    return Avatar(_style(), {"seed": str(seed)}).to_string()


@cache
def _style():
    from dicebear import Style

    return Style(json.loads(resources.files("dicebear_styles").joinpath("landscape.json").read_text("utf-8")))


def _without_idle_clip(svg: str) -> str:
    whole = WHOLE_CANVAS in svg and 'viewBox="0 0 100 100"' in svg and svg.count("clip-path=") == 1
    return CLIP.sub(' style="isolation:isolate"', svg) if whole else svg


def _path(folder: Path, seed: int) -> Path:
    return folder / f"{seed:06d}.png"


def _read(path: Path, resolution: int) -> np.ndarray | None:
    """The cached image, or None if it is missing, damaged or of another size."""
    try:
        png = path.read_bytes()
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            image.verify()  # compares the checksums; decoding alone does not compare those of the pixels
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError):
        return None
    return pixels if pixels.shape == (resolution, resolution, 3) else None


def _write(path: Path, data: bytes) -> None:
    """Write a file that other processes see whole or not at all: `cips_fast.files.atomic` cannot be imported here."""
    temp = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        temp.write_bytes(data)
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Remove the temporary files that killed processes left; younger ones may still be written."""
    for temp in folder.glob("*.tmp"):
        try:
            if time.time() - temp.stat().st_mtime > STALE_SECONDS:
                temp.unlink()
        except FileNotFoundError:
            pass  # its writer has moved it, or another process has removed it


def _start(folder: Path, resolution: int, seeds: list[int]) -> subprocess.Popen:
    # A separate program, since forking is unsafe with PyTorch's threads, and spawning runs the caller's main again.
    with tempfile.TemporaryFile("w+") as numbers:
        json.dump(seeds, numbers)
        numbers.seek(0)
        return subprocess.Popen(
            [sys.executable, __file__, str(folder), str(resolution), str(os.getpid())],
            stdin=numbers,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # so that no file in this folder shadows another package
        )


def _work(folder: Path, resolution: int, parent: int) -> None:
    """A worker: draw the landscapes whose numbers stdin holds, at low priority, as long as the parent process lives."""
    # Ctrl-C must reach only the trainer, which stops the workers. A process group does that. A session would, too, but
    # Linux shares the processor evenly among sessions, whatever their niceness, and the workers would get half of it.
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if hasattr(os, "nice"):
        os.nice(19)
    for seed in json.load(sys.stdin):
        if os.getppid() != parent:
            return
        path = _path(folder, seed)
        if not path.exists():
            _write(path, draw(seed, resolution))


if __name__ == "__main__":
    try:
        _work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except OSError as error:
        sys.exit(f"drawing landscapes: {error}")

"""Batches of patches: which image, which part of it, at which stride, all drawn from the seed and the step alone.

Nothing is kept between steps, so a resumed run sees the same patches as a run without a break.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cips_fast.geometry import GEOMETRIES

from .images import DataError, ImageSource

POOL_GROWTH = 8


@dataclass(frozen=True)
class Patches:
    """Random square patches of a source's images.

    Attributes:
        source: where images come from, of the geometry's aspect.
        batch: patches a step.
        crop: side of a patch in pixels; at stride s it spans (crop - 1)·s + 1 pixels of the image.
        stride_shares: share of patches at strides 1, 2, 4, …; their sum counts as 1.
        mirror: flip half of the images left to right.
        seed: of every choice.
        first_pool: the number of images to choose from at the start, where images have yet to be drawn; one more is
            added for every `POOL_GROWTH` patches. With 0 all images are chosen from at once.
        geometry: a key of `cips_fast.geometry.GEOMETRIES`. On an axis that wraps, a patch may start anywhere and go
            over the image's edge, and the coordinate at which the image begins is drawn for every patch.
    """

    source: ImageSource
    batch: int
    crop: int
    stride_shares: tuple[float, ...] = (1.0,)
    mirror: bool = False
    seed: int = 0
    first_pool: int = 0
    geometry: str = "plane"

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of one step: images in [-1, 1] [B, 3, crop, crop], coordinates [B, crop, crop, 2].

        Raises:
            DataError: an image cannot be read.
        """
        patches, coords = zip(*(self._patch(step * self.batch + i) for i in range(self.batch)), strict=True)
        images = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)
        return images.float().div_(127.5).sub_(1), torch.from_numpy(np.stack(coords))

    def steps(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All batches from a step on. The next one is prepared while this one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="patches") as pool:
            following = pool.submit(self.step, first)
            for step in range(first + 1, 2**62):
                current, following = following, pool.submit(self.step, step)
                yield current.result()

    def _patch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """One patch uint8 [crop, crop, 3] and its coordinates float32 [crop, crop, 2]."""
        rng = np.random.default_rng([self.seed, 1, number])
        image = self._load(int(rng.integers(self._pool(number))))
        height, width, _ = image.shape
        wraps_x, wraps_y = GEOMETRIES[self.geometry].wraps
        stride = 2 ** int(rng.choice(len(self.stride_shares), p=self._shares()))
        span = (self.crop - 1) * stride + 1
        offsets = np.arange(self.crop) * stride
        top = int(rng.integers(height if wraps_y else height - span + 1))
        left = int(rng.integers(width if wraps_x else width - span + 1))
        if self.mirror and rng.random() < 0.5:
            image = image[:, ::-1]
        first_column = int(rng.integers(width)) if wraps_x else 0
        first_row = int(rng.integers(height)) if wraps_y else 0
        patch = image[np.ix_((first_row + top + offsets) % height, (first_column + left + offsets) % width)]
        across, down = GEOMETRIES[self.geometry].intervals(height, width)
        y = (offsets + float(top)) * 2 / down - 1
        x = (offsets + float(left)) * 2 / across - 1
        coords = np.stack(np.meshgrid(x, y), -1).astype(np.float32)
        return np.ascontiguousarray(patch), coords

    def _load(self, index: int) -> np.ndarray:
        try:
            return self.source.load(index)
        except OSError as error:
            raise DataError(f"image {index} of {self.source.name} cannot be read any more ({error})") from error

    def _shares(self) -> np.ndarray:
        """The shares with a sum of 1 in float64, as NumPy requires; users round the shares that they give."""
        shares = np.asarray(self.stride_shares, np.float64)
        return shares / shares.sum()

    def _pool(self, number: int) -> int:
        """How many images may be chosen from. It depends on the patch's number, not on how fast images are drawn."""
        if not self.first_pool:
            return len(self.source)
        return min(len(self.source), self.first_pool + number // POOL_GROWTH)

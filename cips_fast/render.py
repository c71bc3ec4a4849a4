"""Images of any size from one generator, a piece at a time, in memory that does not grow with the image.

Every pixel is computed on its own. A rectangle or a list of pixels therefore costs no more than its own pixels, and in
float32 on a CPU it has the same bits as the whole image has there. On a GPU the number of pixels decides which kernel
runs, and results agree up to rounding.
"""

import copy
import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from . import grids
from .backends.chunks import MIN_PIXELS
from .checks import ArgumentError
from .generator import CIPSGenerator
from .geometry import GEOMETRIES
from .grids import WHOLE, Region

CHUNK_PIXELS = 1 << 16  # pixels that one call of the generator computes
MOST_TABLE_BYTES = 1 << 28  # that a resampled embedding table may take


class Picture(ABC):
    """An image whose pixels are computed when they are asked for.

    Attributes:
        height, width: pixels.
        x, y: coordinates of its columns and rows, float64 [width] and [height].
        dtype: of the layers.
    """

    height: int
    width: int
    x: Tensor
    y: Tensor
    dtype: torch.dtype

    def pixels(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Colours of single pixels, in any order: whole numbers [N] and [N] -> float32 [N, 3]."""
        parts = zip(rows.cpu().split(CHUNK_PIXELS), columns.cpu().split(CHUNK_PIXELS), strict=True)
        colours = [self.colours(self.x[column], self.y[row]) for row, column in parts]
        return torch.cat(colours) if colours else torch.empty(0, 3)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """A rectangle, float32 [3, h, w], on the generator's device."""
        return self.grid(self.x[columns], self.y[rows])

    def image(self) -> Tensor:
        """The whole image, float32 [3, height, width]."""
        return self.tile(slice(None), slice(None))

    def grid(self, x: Tensor, y: Tensor) -> Tensor:
        """Colours where rows and columns cross: float64 [w] and [h] on the CPU -> float32 [3, h, w]."""
        return torch.cat([self._band(x, part) for part in y.split(max(1, CHUNK_PIXELS // max(1, len(x))))], 1)

    def _band(self, x: Tensor, y: Tensor) -> Tensor:
        down, across = torch.meshgrid(y, x, indexing="ij")
        return self.colours(across.flatten(), down.flatten()).T.unflatten(1, (len(y), len(x)))

    @abstractmethod
    def colours(self, x: Tensor, y: Tensor) -> Tensor:
        """Colours of a few points: float64 [N] and [N] on the CPU -> float32 [N, 3]."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A name for everything that decides the pixels."""


class Renderer(Picture):
    """One image of a latent.

    Args:
        generator: in eval mode.
        w: the style latent of one picture, [S] or [1, S], or one latent a layer, [1, num_layers, S]. [num_layers, S] is
            read as one a layer too, with a warning: latents of `num_layers` pictures have the same shape.
        height, width: of the whole image, in pixels.
        region: (x0, y0, x1, y1), what the image shows; [-1, 1]² was trained. Beyond it, on axes that do not wrap, the
            Fourier features continue but the embedding repeats its border, and a warning says so.
        dtype: of the layers: float32, or bfloat16 or float16 under autocast.

    Raises:
        ValueError: a size below 1, a latent of another shape, a region without extent.
    """

    def __init__(
        self,
        generator: CIPSGenerator,
        w: Tensor,
        height: int,
        width: int,
        region: Region = WHOLE,
        *,
        dtype: torch.dtype = torch.float32,
    ):
        w = one_latent(w, generator)
        check_region(region, generator.geometry)
        self.generator, self.w, self.dtype = generator, w, dtype
        self.height, self.width = height, width
        self.x, self.y = grids.axes(height, width, region, geometry=generator.geometry)

    def colours(self, x: Tensor, y: Tensor) -> Tensor:
        return synthesise(self.generator, self.w, torch.stack([x, y], -1), None, self.dtype)

    def fingerprint(self) -> str:
        return digest(self.generator, self.dtype, self.w, self.x, self.y)


def one_latent(w: Tensor, generator: CIPSGenerator) -> Tensor:
    """The latent of one picture, given as `Renderer` takes it, as a batch: [1, S] or [1, num_layers, S].

    Raises:
        ValueError: another shape, such as that of several latents.
    """
    layers, features = generator.num_layers, generator.style_features
    shape = tuple(w.shape)
    if shape in ((features,), (layers, features)):
        if len(shape) == 2 and layers > 1:
            warnings.warn(
                f"w: {list(shape)} is read as one latent a layer, of one picture; to say so give w[None], "
                f"[1, {layers}, {features}], and of several pictures' latents give one, w[i]",
                stacklevel=3,
            )
        return w[None]
    if shape in ((1, features), (1, layers, features)):
        return w
    several = ": give one picture's latent, w[i]" if w.dim() > 1 and w.shape[-1] == features else ""
    raise ArgumentError(
        "w", f"got shape {list(shape)}, must be [{features}], [1, {features}] or [1, {layers}, {features}]{several}"
    )


@torch.no_grad()
def synthesise(generator: CIPSGenerator, w: Tensor, coords: Tensor, mix: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Colours float32 [N, 3] of points float64 [N, 2], of at least `MIN_PIXELS` at once; see `chunks`."""
    count, device = len(coords), w.device
    coords = generator.in_native_units(coords)
    coords, mix = (None if each is None else _at_least(each.float(), MIN_PIXELS).to(device) for each in (coords, mix))
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        rgb = generator.synthesis(w, coords[None] if mix is None else coords, mix)
    return rgb[0, :count].float()


def _at_least(rows: Tensor, count: int) -> Tensor:
    missing = count - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, -1)]) if missing > 0 else rows


def digest(generator: CIPSGenerator, dtype: torch.dtype, *tensors: Tensor) -> str:
    """A name for a generator's parameters, a dtype and further tensors."""
    found = hashlib.sha256(str((generator.config, dtype)).encode())
    for tensor in (*generator.state_dict().values(), *tensors):
        found.update(tensor.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


def image(
    generator: CIPSGenerator,
    w: Tensor,
    height: int,
    width: int,
    region: Region = WHOLE,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """An image of any size, float32 [3, height, width]; arguments as of `Renderer`."""
    return Renderer(generator, w, height, width, region, dtype=dtype).image()


def tiles(height: int, width: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the squares that cover an image, row by row, cut at the right and the bottom edge."""
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            yield slice(top, min(top + tile, height)), slice(left, min(left + tile, width))


class RegionWarning(UserWarning):
    """A region goes beyond the coordinates that a generator was trained on."""


def check_region(region: Region, geometry: str) -> None:
    """Warn of a region that goes beyond what was trained.

    Raises:
        ValueError: the region has no extent, or is not finite.
    """
    x0, y0, x1, y1 = region
    if not all(abs(edge) < float("inf") for edge in region) or x0 == x1 or y0 == y1:
        raise ArgumentError("region", f"got {region}, must be x0,y0,x1,y1 with x0 != x1 and y0 != y1")
    if not GEOMETRIES[geometry].is_trained(region):
        warnings.warn(
            f"region: {region} goes beyond the trained -1,-1,1,1: what lies there was never seen",
            RegionWarning,
            stacklevel=3,
        )


@torch.no_grad()
def with_bicubic_embedding(generator: CIPSGenerator, finer: int) -> CIPSGenerator:
    """A copy for rendering, with its embedding resampled bicubically to `finer` times as many cells a side.

    Embeddings are read bilinearly. The finer one shows no creases between the cells of the coarse one. Where it would
    take more than 256 MiB it is less fine.

    Raises:
        ValueError: `finer` is below 1.
    """
    if finer < 1:
        raise ArgumentError("finer", f"got {finer}, must be at least 1")
    resampled = copy.deepcopy(generator)
    encoding, table = resampled.encoding, resampled.encoding.embedding
    finer = max(1, min(finer, int((MOST_TABLE_BYTES / table.nbytes) ** 0.5)))
    rows, columns = table.shape[:2]
    cells = table.permute(2, 0, 1)[None]  # [1, C, H, W]
    if encoding.align_corners:
        wraps_x, wraps_y = GEOMETRIES[encoding.geometry].wraps
        around_y, kept_y = _finer_cells(rows, finer, wraps_y)
        around_x, kept_x = _finer_cells(columns, finer, wraps_x)
        cells = cells[:, :, around_y][..., around_x]
        size = ((len(around_y) - 1) * finer + 1, (len(around_x) - 1) * finer + 1)
        cells = _bicubic(cells, size, True)[:, :, kept_y, kept_x]
    else:
        cells = _bicubic(cells, (rows * finer, columns * finer), False)
    encoding.embedding = torch.nn.Parameter(cells[0].permute(1, 2, 0).contiguous(), requires_grad=False)
    return resampled


def _finer_cells(count: int, finer: int, wraps: bool) -> tuple[Tensor, slice]:
    """The cells of an axis that are resampled, and which of the finer ones are kept.

    On an axis that wraps there are more cells before the first and after the last, as many as a cubic reaches.
    """
    if not wraps:
        return torch.arange(count), slice(None)
    return torch.arange(-2, count + 3) % count, slice(2 * finer, (2 + count) * finer)


def _bicubic(cells: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return F.interpolate(cells, size, mode="bicubic", align_corners=align_corners)

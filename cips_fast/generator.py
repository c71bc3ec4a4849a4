"""The CIPS generator: a pixel's colour follows from a latent and that pixel's coordinate, and from nothing else."""

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import grids, module_changes
from .backends.autocast import without_autocast
from .backends.choice import BACKENDS
from .checks import ArgumentError, check_choice, check_finite
from .geometry import GEOMETRIES
from .kernels.network import Network, tapped_layers
from .module_changes import change_of, plain_affines
from .modules import FourierEncoding, Mapping, ModFC, Shortcut, ToRGB, affine_styles
from .settings import ACTIVATIONS, LARGEST_SIZE, PUBLISHED_WIDTHS, VARIANTS, GeneratorConfig, with_settings
from .synthesis import checked_chunk, in_chunks, synthesis

__all__ = ["ACTIVATIONS", "LARGEST_SIZE", "PUBLISHED_WIDTHS", "VARIANTS", "CIPSGenerator"]

MEAN_LATENT_DECAY = 0.998


class CIPSGenerator(nn.Module):
    """Generator with conditionally-independent pixels (Anokhin et al., arXiv 2011.13775).

    x₀ = [sin(F c + φ); E(c)], then 1 + 2·(log2(size) - 1) ModFC layers. `skip` adds the colours that an RGB tap reads
    after every second layer; `res` adds each pair of layers to its input, (x + f(x))/√2, and reads colours at the end.

    Args:
        size: native resolution, a power of two from 4 to 65536; it sets the number of blocks.
        backend: see `cips_fast.backends.choice`.
        pixel_chunk: pixels of an image whose activations training holds at a time, all unless given; see
            `cips_fast.synthesis`. An attribute of this name may be set at any time.
        settings: `variant`, `width`, `style_features`, `activation`, `geometry` and all others of
            `cips_fast.settings.GeneratorConfig`.

    Attributes:
        config: the settings with every default filled in, as plain values; checkpoints hold them.

    Raises:
        ValueError: an argument of another type, or out of its range.
    """

    _warned: str | None = None  # the change of modules that a warning has already named

    @with_settings
    def __init__(self, size: int = 256, *, backend: str = "auto", pixel_chunk: int | None = None, **settings: Any):
        super().__init__()
        config = GeneratorConfig(size, **settings)
        check_choice("backend", backend, BACKENDS)
        self.config = config.to_dict()
        self.size = config.size
        self.variant = config.variant
        self.style_features = config.style_features
        self.geometry = config.geometry
        self.integer_coords = config.integer_coords
        self.activation = config.activation
        self.noise = config.noise
        self.backend = backend
        self.pixel_chunk = checked_chunk(pixel_chunk)

        self.mapping = Mapping(config.style_features, config.mapping_layers)
        self.encoding = FourierEncoding(
            config.encoding_features,
            config.embedding_size,
            align_corners=config.align_corners,
            max_frequency=config.max_frequency,
            embedding_std=config.embedding_std,
            geometry=config.geometry,
            backend=backend,
        )
        widths = config.width
        outputs = [widths[0], *(w for w in widths for _ in range(2))]
        inputs = [2 * config.encoding_features, *outputs[:-1]]
        self.layers = nn.ModuleList(
            ModFC(i, o, config.style_features, activation=config.activation, backend=backend)
            for i, o in zip(inputs, outputs, strict=True)
        )
        tapped = widths if config.variant == "skip" else widths[-1:]
        self.to_rgb = nn.ModuleList(ToRGB(width, config.style_features, backend=backend) for width in tapped)
        self.shortcuts = nn.ModuleList(
            Shortcut(i, o) if config.variant == "res" and i != o else nn.Identity()
            for i, o in zip([widths[0], *widths], widths, strict=False)
        )
        # One strength a layer, as published checkpoints have them; zero and not trained, since the paper adds no noise.
        self.noise_strength = nn.Parameter(torch.zeros(len(self.layers)), requires_grad=False)
        self.register_buffer("mean_latent", torch.zeros(config.style_features))

    @property
    def num_layers(self) -> int:
        """Number of ModFC layers, which is also the number of styles that a per-layer latent holds."""
        return len(self.layers)

    @property
    def tapped(self) -> list[int]:
        """Indices of the layers that the RGB taps read."""
        return tapped_layers(self.num_layers, residual=self.variant == "res")

    def native_grid(self) -> Tensor:
        """Coordinates of the native resolution, [size, size, 2], or [size, 2·size, 2] on a cylinder."""
        device = self.mean_latent.device
        height, width = GEOMETRIES[self.geometry].size(self.size)
        if self.integer_coords:
            return grids.integer(height, width, device=device)
        return grids.regular(height, width, geometry=self.geometry, device=device)

    def in_native_units(self, coords: Tensor) -> Tensor:
        """Points in [-1, 1]² as `synthesis` takes them: in pixels of the native grid with `integer_coords`."""
        return (coords + 1) / 2 * (self.size - 1) if self.integer_coords else coords

    def forward(self, z: Tensor, coords: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Images of latents.

        Args:
            z: drawn N(0, 1), [B, S].
            coords: as in `synthesis`; the native grid unless given.
            truncation: 1 for the full distribution, 0 for the mean image; see `truncate`.

        Returns:
            Colours, nominally in [-1, 1], as `synthesis` gives them; [B, 3, size, size] on the native grid of a plane.

        Raises:
            ValueError: z or coords of another shape, a truncation that is not finite.
        """
        if isinstance(z, Tensor) and z.dim() != 2:
            raise ArgumentError("z", f"got shape {list(z.shape)}, must be [B, {self.style_features}]")
        w = self.truncate(self.mapping(z), truncation)
        return self.synthesis(w, self.native_grid()[None] if coords is None else coords)

    def truncate(self, w: Tensor, truncation: float) -> Tensor:
        """Pull style latents towards the mean latent: w̄ + t·(w - w̄), [..., S] -> [..., S].

        Raises:
            ValueError: a truncation that is not a finite number.
        """
        if not isinstance(truncation, Tensor):  # reading a tensor's value would wait for the GPU
            check_finite("truncation", truncation)
        return w if truncation == 1 else self.mean_latent + truncation * (w - self.mean_latent)

    @torch.no_grad()
    def track_mean_latent(self, w: Tensor) -> None:
        """Move the mean latent towards a training batch's mean by a share of 0.002: w [B, S]; no move if B is 0."""
        if w.shape[0] == 0:
            return
        self.mean_latent.lerp_(w.detach().mean(0).to(self.mean_latent.dtype), 1 - MEAN_LATENT_DECAY)

    def mix(self, w: Tensor, w_late: Tensor, crossover: int) -> Tensor:
        """Per-layer styles that are `w` before layer `crossover` and `w_late` from it on.

        Args:
            w, w_late: [B, S].
            crossover: 0 (all `w_late`) to `num_layers` (all `w`).

        Returns:
            [B, num_layers, S], an argument for `synthesis`.

        Raises:
            ValueError: the crossover is out of range.
        """
        if not 0 <= crossover <= self.num_layers:
            raise ArgumentError("crossover", f"got {crossover}, must be 0 to {self.num_layers}")
        late = torch.arange(self.num_layers, device=w.device)[:, None] >= crossover  # [L, 1]
        return torch.where(late, w_late[:, None], w[:, None])

    def synthesis(self, w: Tensor, coords: Tensor, mix: Tensor | None = None) -> Tensor:
        """Colours at coordinates.

        One operator over the parameters computes them and calls no layer. If layers were replaced, wrapped, hooked or
        given adapters, the generator calls its modules one by one instead, and a warning says so once.

        Args:
            w: style latents [B, S], or one a layer [B, num_layers, S]; an RGB tap takes that of the layer it reads.
            coords: x first. Lists [P, 2] or [B, P, 2] give [B, P, 3]; grids [H, W, 2] or [B|1, H, W, 2] give
                [B, 3, H, W]. Three dimensions are read as a list for each latent if the first is B, else as a grid. Put
                a 1 before the shape of a grid whose height may be B.
            mix: α, where styles differ from pixel to pixel: w are then J anchors, and a pixel's style is that of the
                latent Σ_j α_j w_j, α summing to 1; see `cips_fast.pixel_styles`. [P, J] or [B, P, J] for a list [P, 2];
                [H, W, J] or [B, H, W, J] for coords of three or four dimensions, which are then a grid.

        Returns:
            Colours, nominally in [-1, 1]: [B, P, 3] or [B, 3, H, W].

        Raises:
            ValueError: a shape that is none of these; `mix` for a generator whose layers were replaced or changed;
                noise for a layer that takes none.
        """
        self._check_latents(w)
        if isinstance(self.encoding, FourierEncoding) and (coords.dim() < 2 or coords.shape[-1] != 2):
            raise ArgumentError("coords", f"got shape {list(coords.shape)}, must be [..., 2], x and y last")
        change, anchors = change_of(self), w.shape[0]
        if mix is None:
            points, grid = _as_points(coords, anchors)
        else:
            points, mix, grid = _as_mixed_points(coords, mix, anchors)
        if change is None:
            rgb = self._by_one_operator(w, points, mix, reads_cells=self._reads_cells(grid))
        else:
            rgb = self._by_modules(w, points, mix, change, reads_cells=self._reads_cells(grid))
        return rgb if grid is None else rgb.transpose(1, 2).unflatten(2, grid)

    def _by_one_operator(self, w: Tensor, points: Tensor, mix: Tensor | None, *, reads_cells: bool) -> Tensor:
        points, table_coords = self.encoding.points(points)
        return synthesis(
            self._network(w),
            points,
            self._cell_centres().expand(len(points), -1, -1) if reads_cells else table_coords,
            mix=mix,
            activation=self.activation,
            noise_strength=self.noise_strength if self.noise else None,
            pixel_chunk=self.pixel_chunk,
            backend=self.backend,
        )  # [B, P, 3]

    def _by_modules(self, w: Tensor, points: Tensor, mix: Tensor | None, change: str, *, reads_cells: bool) -> Tensor:
        if mix is not None:
            raise ArgumentError(
                "mix", f"got weights of anchors for a generator whose {change}, which takes one style an image"
            )
        module_changes.check_noise(self)
        if not torch.compiler.is_compiling() and change != self._warned:
            self._warned = change
            warnings.warn(f"generator: {change}, so its layers are called one by one, which is slower", stacklevel=4)
        table_coords = (self._cell_centres().expand(len(points), -1, -1),) if reads_cells else ()
        # The backward pass of a chunk runs the modules again, and they must draw the same random numbers.
        return in_chunks(
            partial(module_changes.colours, self, w),
            (points, *table_coords),
            checked_chunk(self.pixel_chunk),
            random=True,
        )

    def network(self, w: Tensor) -> Network:
        """The parameters between coordinates and colours for style latents [B, S] or [B, num_layers, S].

        Raises:
            ValueError: another shape, or a generator whose layers were replaced or hooked: parameters alone do not tell
                what it computes.
        """
        self._check_latents(w)
        change = change_of(self)
        if change is not None:
            raise ArgumentError("generator", f"{change}, must be as it was built")
        return self._network(w)

    def _check_latents(self, w: Tensor) -> None:
        wanted = f"[B, {self.style_features}] or [B, {self.num_layers}, {self.style_features}]"
        per_layer = w.dim() == 3 and w.shape[1] == self.num_layers
        if w.shape[-1] != self.style_features or not (w.dim() == 2 or per_layer):
            raise ArgumentError("w", f"got shape {list(w.shape)}, must be {wanted}")

    def _network(self, w: Tensor) -> Network:
        affines = [layer.affine for layer in (*self.layers, *self.to_rgb)]
        indices = [*range(self.num_layers), *self.tapped]
        if plain_affines(affines):
            with without_autocast(w):
                return self.network_of(affine_styles(affines, w if w.dim() == 2 else w[:, indices]))
        latents = [w if w.dim() == 2 else w[:, index] for index in indices]
        return self.network_of([affine(latent) for affine, latent in zip(affines, latents, strict=True)])

    def network_of(self, styles: Sequence[Tensor]) -> Network:
        """The parameters between coordinates and colours, with styles [B, I] of all layers and then of all RGB taps."""
        return Network(
            self.encoding.freq,
            self.encoding.phase,
            self.encoding.table(),
            [layer.weight for layer in self.layers],
            [layer.bias for layer in self.layers],
            styles[: self.num_layers],
            [tap.weight for tap in self.to_rgb],
            [tap.bias for tap in self.to_rgb],
            styles[self.num_layers :],
            [shortcut() for shortcut in self.shortcuts if isinstance(shortcut, Shortcut)],
            self.variant == "res",
            self.encoding.align_corners,
        )

    def _reads_cells(self, grid: tuple[int, int] | None) -> bool:
        """Whether every pixel reads exactly one cell of the embedding table.

        Published checkpoints were trained this way, and sampling reads half a cell to the side.
        """
        encoding = self.encoding
        if not self.training or not isinstance(encoding, FourierEncoding) or encoding.align_corners:
            return False
        return grid == tuple(encoding.embedding.shape[:2])

    def _cell_centres(self) -> Tensor:
        """The coordinates that read exactly the embedding table's cells without aligned corners, [1, cells², 2]."""
        table = self.encoding.embedding
        dtype = torch.promote_types(table.dtype, torch.float32)
        side = (2 * torch.arange(table.shape[0], dtype=dtype, device=table.device) + 1) / table.shape[0] - 1
        y, x = torch.meshgrid(side, side, indexing="ij")
        return torch.stack([x, y], -1).flatten(0, 1)[None]


def _as_points(coords: Tensor, batch: int) -> tuple[Tensor, tuple[int, int] | None]:
    """Coordinates as a list [B|1, P, D], and the grid's (H, W) if they are one."""
    shape = list(coords.shape)
    if coords.dim() == 2:
        return coords[None], None
    if coords.dim() == 3 and shape[0] == batch:
        # Not in a captured graph: the comparison would tie its number of points to its number of images.
        if not torch.compiler.is_compiling() and shape[1] == batch > 1:
            warnings.warn(
                f"coords: {shape} with {batch} latents is read as [B, P, D]; give [1, H, W, D] for a grid",
                stacklevel=3,
            )
        return coords, None
    if coords.dim() == 3:
        return coords.flatten(0, 1)[None], (shape[0], shape[1])
    if coords.dim() == 4 and shape[0] in (1, batch):
        return coords.flatten(1, 2), (shape[1], shape[2])
    raise ArgumentError(
        "coords", f"got shape {shape}, must be [P, D], [{batch}, P, D], [H, W, D] or [{batch}|1, H, W, D]"
    )


def _as_mixed_points(coords: Tensor, mix: Tensor, anchors: int) -> tuple[Tensor, Tensor, tuple[int, int] | None]:
    """Coordinates as a list [B|1, P, D], weights of anchors [B, P, J], and the grid's (H, W) if they are one."""
    if coords.dim() not in (2, 3, 4):
        raise ArgumentError("coords", f"got shape {list(coords.shape)}, must be [P, D], [H, W, D] or [B|1, H, W, D]")
    shape = tuple(coords.shape[:1] if coords.dim() == 2 else coords.shape[-3:-1])  # (P,) or (H, W)
    images = mix.shape[: -1 - len(shape)]
    if mix.dim() <= len(shape) or mix.shape[len(images) :] != (*shape, anchors) or len(images) > 1:
        wanted = [*shape, anchors]
        raise ArgumentError(
            "mix", f"got shape {list(mix.shape)}, must be {wanted}, or such weights for each of B images"
        )
    images, pixels = coords.shape[:1] if coords.dim() == 4 else (1,), math.prod(shape)
    points = coords.reshape(*images, pixels, coords.shape[-1])
    mix = mix.reshape(*(mix.shape[: -1 - len(shape)] or (1,)), pixels, anchors)
    mix = mix.expand(len(points), -1, -1) if len(mix) == 1 else mix
    return points, mix, shape if len(shape) == 2 else None

"""The CIPS generator: every pixel's colour from a latent and that pixel's coordinate, and from nothing else."""

import math
import warnings
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from . import grids, module_changes
from .backends.autocast import without_autocast
from .backends.choice import BACKENDS
from .checks import (
    ArgumentError,
    check_choice,
    check_finite,
    check_flag,
    checked_count,
    checked_counts,
    checked_number,
    is_count,
    shown,
)
from .kernels.network import Network
from .module_changes import change_of, plain_affines
from .modules import (
    GEOMETRIES,
    LARGEST_FREQUENCY,
    MOST_CELLS,
    MOST_FEATURES,
    MOST_MAPPING_LAYERS,
    FourierEncoding,
    Mapping,
    ModFC,
    Shortcut,
    ToRGB,
    affine_styles,
)
from .reference import NETWORK_ACTIVATIONS as ACTIVATIONS
from .synthesis import checked_chunk, in_chunks, synthesis

VARIANTS = ("skip", "res")
MEAN_LATENT_DECAY = 0.998
LARGEST_SIZE = 1 << 16

# Widths of blocks 0…8 in the released checkpoints; the paper itself counts a constant width of 512.
PUBLISHED_WIDTHS = {
    "skip": (512, 512, 512, 512, 512, 256, 128, 64, 32),
    "res": (512, 512, 512, 512, 512, 256, 128, 128, 64),
}


class CIPSGenerator(nn.Module):
    """Generator with conditionally-independent pixels (Anokhin et al., arXiv 2011.13775).

    x₀ = [sin(F c + φ); E(c)], then 1 + 2·(log2(size) - 1) ModFC layers. `skip` adds the colours that an RGB tap reads
    after every second layer; `res` adds each pair of layers to its input, (x + f(x))/√2, and reads colours at the end.

    Args:
        size: native resolution, a power of two from 4 to 65536; it sets the number of blocks.
        variant: `skip` or `res`.
        width: channels of every layer, 1 to 65536; `published`, the released checkpoints' narrowing widths; or one
            number a block. With `sinrelu` they are even.
        style_features: S, of z and of w, 1 to 65536.
        activation: `lrelu`, `sin` or `sinrelu`.
        geometry: `plane`, or `cylinder`: panoramas, whose x goes round once from -1 to 1; see `FourierEncoding`. Their
            native grid and their embedding are twice as wide as high.
        embedding_size: rows of the coordinate embedding, 1 to 16384; `size` unless given.
        encoding_features: C of the encoding, 1 to 65536; the first block's width unless given.
        mapping_layers: depth of the mapping network, 1 to 64.
        max_frequency, embedding_std: initial ranges of the encoding, 0 to 1e6, see `FourierEncoding`.
        integer_coords: the native grid is counted in pixels instead of [-1, 1], as in some published checkpoints.
        align_corners: see `FourierEncoding`.
        noise: add per-pixel noise before every activation, as published checkpoints may; the paper has none.
        backend: see `cips_fast.backends.choice`.
        pixel_chunk: pixels of an image whose activations training holds at a time, all unless given; see
            `cips_fast.synthesis`. An attribute of this name may be set at any time.

    Raises:
        ValueError: an argument of another type, or out of its range.
    """

    _told: str | None = None  # what a warning told of this generator's modules

    def __init__(
        self,
        size: int = 256,
        *,
        variant: str = "skip",
        width: int | str | Sequence[int] = 512,
        style_features: int = 512,
        activation: str = "lrelu",
        geometry: str = "plane",
        embedding_size: int | None = None,
        encoding_features: int | None = None,
        mapping_layers: int = 8,
        max_frequency: float = 4.5**0.5,
        embedding_std: float = 1.0,
        integer_coords: bool = False,
        align_corners: bool = True,
        noise: bool = False,
        backend: str = "auto",
        pixel_chunk: int | None = None,
    ):
        super().__init__()
        if not is_count(size, LARGEST_SIZE) or size < 4 or size & (size - 1):
            raise ArgumentError("size", f"got {shown(size)}, must be a power of two from 4 to {LARGEST_SIZE}")
        size = int(size)
        check_choice("variant", variant, VARIANTS)
        check_choice("activation", activation, ACTIVATIONS)
        check_choice("geometry", geometry, GEOMETRIES)
        check_choice("backend", backend, BACKENDS)
        for name, flag in (("integer_coords", integer_coords), ("align_corners", align_corners), ("noise", noise)):
            check_flag(name, flag)
        if geometry == "cylinder" and integer_coords:
            raise ArgumentError("integer_coords", "got True, must be False on a cylinder")
        widths = _block_widths(width, variant, blocks=size.bit_length() - 2)
        if activation == "sinrelu" and any(each % 2 for each in widths):
            raise ArgumentError("width", f"got {shown(width)}, activation 'sinrelu' needs even numbers")
        style_features = checked_count("style_features", style_features, MOST_FEATURES)
        features = widths[0] if encoding_features is None else encoding_features
        features = checked_count("encoding_features", features, MOST_FEATURES)
        cells = checked_count("embedding_size", size if embedding_size is None else embedding_size, MOST_CELLS)
        mapping_layers = checked_count("mapping_layers", mapping_layers, MOST_MAPPING_LAYERS)
        max_frequency = checked_number("max_frequency", max_frequency, LARGEST_FREQUENCY)
        embedding_std = checked_number("embedding_std", embedding_std, LARGEST_FREQUENCY)
        pixel_chunk = checked_chunk(pixel_chunk)
        self.config = {
            "size": size,
            "variant": variant,
            "width": widths,
            "style_features": style_features,
            "activation": activation,
            "geometry": geometry,
            "embedding_size": cells,
            "encoding_features": features,
            "mapping_layers": mapping_layers,
            "max_frequency": max_frequency,
            "embedding_std": embedding_std,
            "integer_coords": integer_coords,
            "align_corners": align_corners,
            "noise": noise,
        }
        self.size = size
        self.variant = variant
        self.style_features = style_features
        self.geometry = geometry
        self.integer_coords = integer_coords
        self.activation = activation
        self.noise = noise
        self.backend = backend
        self.pixel_chunk = pixel_chunk

        self.mapping = Mapping(style_features, mapping_layers)
        self.encoding = FourierEncoding(
            features,
            cells,
            align_corners=align_corners,
            max_frequency=max_frequency,
            embedding_std=embedding_std,
            geometry=geometry,
            backend=backend,
        )
        inputs = [2 * features, widths[0], *(w for w in widths for _ in range(2))][: 2 * len(widths) + 1]
        outputs = [widths[0], *(w for w in widths for _ in range(2))]
        self.layers = nn.ModuleList(
            ModFC(i, o, style_features, activation=activation, backend=backend)
            for i, o in zip(inputs, outputs, strict=True)
        )
        tapped = widths if variant == "skip" else widths[-1:]
        self.to_rgb = nn.ModuleList(ToRGB(width, style_features, backend=backend) for width in tapped)
        self.shortcuts = nn.ModuleList(
            Shortcut(i, o) if variant == "res" and i != o else nn.Identity()
            for i, o in zip([widths[0], *widths], widths, strict=False)
        )
        # One strength a layer, as published checkpoints have them; zero and not trained, since the paper adds no noise.
        self.noise_strength = nn.Parameter(torch.zeros(len(self.layers)), requires_grad=False)
        self.register_buffer("mean_latent", torch.zeros(style_features))

    @property
    def num_layers(self) -> int:
        """ModFC layers, and with it the number of styles a per-layer latent holds."""
        return len(self.layers)

    @property
    def tapped(self) -> list[int]:
        """Places of the layers that the RGB taps read."""
        return list(range(2, self.num_layers, 2)) if self.variant == "skip" else [self.num_layers - 1]

    def native_grid(self) -> Tensor:
        """Coordinates of the native resolution, [size, size, 2], or [size, 2·size, 2] on a cylinder."""
        device = self.mean_latent.device
        if self.geometry == "cylinder":
            return grids.cylinder(self.size, 2 * self.size, device=device)
        grid = grids.integer if self.integer_coords else grids.plane
        return grid(self.size, self.size, device=device)

    def in_native_units(self, coords: Tensor) -> Tensor:
        """Points in [-1, 1]² as `synthesis` takes them: counted in the native grid's pixels with `integer_coords`."""
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
        if not isinstance(truncation, Tensor):  # whose values are not asked for: on a GPU that would wait
            check_finite("truncation", truncation)
        return w if truncation == 1 else self.mean_latent + truncation * (w - self.mean_latent)

    @torch.no_grad()
    def track_mean_latent(self, w: Tensor) -> None:
        """Move the mean latent towards a training batch's mean by a share of 0.002: w [B, S]; an empty one has none."""
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

        It is one operator over the parameters, which calls no layer. A generator whose layers were replaced, wrapped,
        hooked or given adapters is noticed: it calls its modules one by one, and says so once.

        Args:
            w: style latents [B, S], or one a layer [B, num_layers, S]; an RGB tap takes that of the layer it reads.
            coords: x first. Lists [P, 2] or [B, P, 2] give [B, P, 3]; grids [H, W, 2] or [B|1, H, W, 2] give
                [B, 3, H, W]. Three dimensions are read as a list for each latent if the first is B, else as a grid: put
                a 1 before a grid whose height may be B.
            mix: α, where styles differ from pixel to pixel: w are then J anchors, and a pixel's style is that of the
                latent Σ_j α_j w_j, α summing to 1; see `cips_fast.pixel_styles`. [P, J] or [B, P, J] for a list [P, 2];
                [H, W, J] or [B, H, W, J] for coords of three or four dimensions, which are then a grid.

        Returns:
            Colours, nominally in [-1, 1]: [B, P, 3] or [B, 3, H, W].

        Raises:
            ValueError: a shape that is none of these; `mix` for a generator with layers that are not its own; noise for
                a layer that takes none.
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
        points, at = self.encoding.points(points)
        return synthesis(
            self._network(w),
            points,
            self._cell_centres().expand(len(points), -1, -1) if reads_cells else at,
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
        if not torch.compiler.is_compiling() and change != self._told:
            self._told = change
            warnings.warn(f"generator: {change}, so its layers are called one by one, which is slower", stacklevel=4)
        at = (self._cell_centres().expand(len(points), -1, -1),) if reads_cells else ()
        # Whatever a module does is done again in the backward pass of a chunk, the random numbers included.
        return in_chunks(
            partial(module_changes.colours, self, w), (points, *at), checked_chunk(self.pixel_chunk), random=True
        )

    def network(self, w: Tensor) -> Network:
        """What lies between coordinates and colours for style latents [B, S] or [B, num_layers, S].

        Raises:
            ValueError: another shape, or a generator whose layers were replaced or hooked: no parameters say what it
                computes.
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
        places = [*range(self.num_layers), *self.tapped]
        if plain_affines(affines):
            with without_autocast(w):
                return self.network_of(affine_styles(affines, w if w.dim() == 2 else w[:, places]))
        latents = [w if w.dim() == 2 else w[:, place] for place in places]
        return self.network_of([affine(latent) for affine, latent in zip(affines, latents, strict=True)])

    def network_of(self, styles: Sequence[Tensor]) -> Network:
        """What lies between coordinates and colours for the styles [B, I] of all layers and then of all RGB taps."""
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
        """Whether every pixel takes one cell of the embedding as it stands.

        Published checkpoints were trained so, and are sampled half a cell aside.
        """
        encoding = self.encoding
        if not self.training or not isinstance(encoding, FourierEncoding) or encoding.align_corners:
            return False
        return grid == tuple(encoding.embedding.shape[:2])

    def _cell_centres(self) -> Tensor:
        """Where reading the embedding without aligned corners gives its cells, [1, cells², 2]."""
        table = self.encoding.embedding
        dtype = torch.promote_types(table.dtype, torch.float32)
        side = (2 * torch.arange(table.shape[0], dtype=dtype, device=table.device) + 1) / table.shape[0] - 1
        y, x = torch.meshgrid(side, side, indexing="ij")
        return torch.stack([x, y], -1).flatten(0, 1)[None]


def _block_widths(width: int | str | Sequence[int], variant: str, blocks: int) -> list[int]:
    """Channels of every block, from what the caller gave."""
    if isinstance(width, str) and width == "published":
        if blocks > len(PUBLISHED_WIDTHS[variant]):
            raise ArgumentError(
                "width", f"'published' widths reach to size {2 ** (len(PUBLISHED_WIDTHS[variant]) + 1)}"
            )
        return list(PUBLISHED_WIDTHS[variant][:blocks])
    if is_count(width, MOST_FEATURES):
        return [int(width)] * blocks
    if isinstance(width, list | tuple):
        return checked_counts("width", width, blocks, MOST_FEATURES)
    raise ArgumentError(
        "width", f"got {shown(width)}, must be 'published', or one or {blocks} whole numbers from 1 to {MOST_FEATURES}"
    )


def _as_points(coords: Tensor, batch: int) -> tuple[Tensor, tuple[int, int] | None]:
    """Coordinates as a list [B|1, P, D], and the grid's (H, W) if they are one."""
    shape = list(coords.shape)
    if coords.dim() == 2:
        return coords[None], None
    if coords.dim() == 3 and shape[0] == batch:
        # A captured graph is not asked: the question would tie its number of points to its number of images.
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

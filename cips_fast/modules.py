"""The building blocks of CIPS as torch.nn modules, with equalised learning rates as in the published code.

Equalised learning rate (Karras et al., arXiv 1710.10196): parameters are drawn N(0, 1) and scaled at run time, so that
one Adam step changes every layer by the same relative amount.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from . import functional
from . import reference as ref
from .backends.autocast import autocast_dtype, without_autocast
from .backends.choice import BACKENDS, TRITON_DIMENSIONS
from .checks import ArgumentError, check_choice, check_finite, check_flag, checked_count, checked_number
from .geometry import GEOMETRIES

# The largest settings that are taken. They are far beyond what a machine can hold: a typing error or a damaged file
# is then an error at once, and not a process that runs out of memory.
MOST_FEATURES = 1 << 16  # channels and widths of styles
MOST_CELLS = 1 << 14  # rows of the embedding
MOST_MAPPING_LAYERS = 64
LARGEST_FREQUENCY = 1e6  # also the largest standard deviation of the embedding


def check_features(x: Tensor, style: Tensor, inputs: int, affine: nn.Module) -> None:
    """Raise ValueError, with shapes as the caller gave them, unless x [B|1, ..., I] and style [B, S] fit a layer."""
    if x.dim() < 2 or x.shape[-1] != inputs:
        raise ArgumentError("x", f"got shape {list(x.shape)}, must be [B, ..., {inputs}], channels last")
    width = affine.weight.shape[1] if isinstance(affine, EqualLinear) else style.shape[-1]
    if style.dim() != 2 or style.shape[1] != width or x.shape[0] not in (1, style.shape[0]):
        batch = "B" if x.shape[0] == 1 else x.shape[0]
        raise ArgumentError("style", f"got shape {list(style.shape)} for x {list(x.shape)}, must be [{batch}, {width}]")


class EqualLinear(nn.Module):
    """Equalised linear layer y = x (m·W/√I)ᵀ + m·b, W drawn N(0, 1/m²); computed in the parameters' dtype.

    Args:
        in_features, out_features: I and O.
        bias_init: initial value of m·b.
        lr_multiplier: m; the layer learns m times as fast as its neighbours.

    Raises:
        ValueError: an argument of another type, or out of range.
    """

    def __init__(self, in_features: int, out_features: int, *, bias_init: float = 0.0, lr_multiplier: float = 1.0):
        super().__init__()
        in_features, out_features = _checked_features(in_features=in_features, out_features=out_features)
        check_finite("bias_init", bias_init)
        if checked_number("lr_multiplier", lr_multiplier, 1e6) == 0:
            raise ArgumentError("lr_multiplier", "got 0, must be above 0")
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)  # [O, I]
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))  # [O]
        self.lr_multiplier = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] -> [..., O]."""
        # Styles scale whole channels: their rounding under autocast would be seen in every pixel, and they are cheap.
        with without_autocast(x):
            return ref.linear_ref(x.to(self.weight.dtype), self.weight, self.bias, self.lr_multiplier)


def affine_styles(affines: Sequence[EqualLinear], w: Tensor) -> list[Tensor]:
    """Styles A_l w + b_l of many layers in one product.

    Args:
        affines: layers S -> I, of learning-rate multiplier 1.
        w: style latents [B, S] of all of them, or one for each [B, len(affines), S].

    Returns:
        [B, I] for each; rows may be strided.
    """
    weights, biases = [affine.weight for affine in affines], [affine.bias for affine in affines]
    w = w.to(weights[0].dtype) / math.sqrt(w.shape[-1])
    sizes = [weight.shape[0] for weight in weights]
    if w.dim() == 2:
        return list(nn.functional.linear(w, torch.cat(weights), torch.cat(biases)).split(sizes, 1))
    # Other latents for other layers: as many products, of the widest layer's size.
    padded = nn.utils.rnn.pad_sequence(weights, batch_first=True)  # [L, max I, S]
    styles = torch.baddbmm(nn.utils.rnn.pad_sequence(biases, batch_first=True)[:, None], w.transpose(0, 1), padded.mT)
    return [style[:, :size] for style, size in zip(styles, sizes, strict=True)]


class Mapping(nn.Module):
    """Mapping network w = MLP(z / rms(z)): equalised layers with √2·lrelu₀.₂ and learning-rate multiplier 0.01.

    Args:
        style_features: S.
        layers: depth of the MLP.

    Raises:
        ValueError: an argument that is no whole number, or out of range.
    """

    def __init__(self, style_features: int = 512, layers: int = 8):
        super().__init__()
        (style_features,) = _checked_features(style_features=style_features)
        layers = checked_count("layers", layers, MOST_MAPPING_LAYERS)
        self.style_features = style_features
        self.layers = nn.ModuleList(
            EqualLinear(style_features, style_features, lr_multiplier=0.01) for _ in range(layers)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Latents z, drawn N(0, 1), [..., S] -> style latents w [..., S].

        Raises:
            ValueError: z is no floating tensor of that shape.
        """
        if not isinstance(z, Tensor):
            raise ArgumentError("z", f"got a {type(z).__name__}, must be a tensor [B, {self.style_features}]")
        if not z.is_floating_point():
            raise ArgumentError("z", f"got dtype {z.dtype}, must be floating")
        if z.dim() == 0 or z.shape[-1] != self.style_features:
            raise ArgumentError("z", f"got shape {list(z.shape)}, must be [B, {self.style_features}]")
        w = ref.rms_norm_ref(z)
        for layer in self.layers:
            w = ref.activate_ref(layer(w), "lrelu")
        return w


class ModFC(nn.Module):
    """Fully-connected layer with weights modulated by a style   (Anokhin et al., arXiv 2011.13775, section 3).

    y = activation(W' x + β),  s = A·style + 1,  W' = demodulate(W·s/√I)

    Args:
        in_features, out_features, style_features: I, O and S.
        demodulate: normalise every output's modulated weights to unit length.
        activation: `lrelu` (√2·lrelu₀.₂), `linear`, `sin` or `sinrelu`.
        bias: learn β.
        backend: see `cips_fast.backends.choice`.

    Raises:
        ValueError: an argument of another type, or out of range; an unknown activation or backend.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        style_features: int,
        *,
        demodulate: bool = True,
        activation: str = "lrelu",
        bias: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        in_features, out_features, style_features = _checked_features(
            in_features=in_features, out_features=out_features, style_features=style_features
        )
        check_flag("demodulate", demodulate)
        check_flag("bias", bias)
        check_choice("activation", activation, ref.ACTIVATIONS)
        if activation == "sinrelu" and out_features % 2:
            raise ArgumentError("out_features", f"got {out_features}, activation 'sinrelu' needs an even number")
        check_choice("backend", backend, BACKENDS)
        self.weight = nn.Parameter(torch.randn(out_features, in_features))  # [O, I]
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None  # [O]
        self.affine = EqualLinear(style_features, in_features, bias_init=1.0)
        self.demodulate = demodulate
        self.activation = activation
        self.backend = backend

    def forward(self, x: Tensor, style: Tensor, noise_strength: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: features, channels last [B|1, ..., I].
            style: latents [B, S].
            noise_strength: factor of normal noise, one number a pixel, that is added before the bias.

        Returns:
            [B, ..., O].

        Raises:
            ValueError: a shape does not fit.
        """
        check_features(x, style, self.weight.shape[1], self.affine)
        pixels = x if x.dim() == 3 else x[:, None] if x.dim() == 2 else x.flatten(1, -2)  # [B|1, P, I]
        layer, call = (self.weight, self.affine(style), self.bias), functional.mod_fc
        if noise_strength is not None:
            call = partial(functional.noisy_mod_fc, strength=noise_strength)
        y = call(pixels, *layer, demodulate=self.demodulate, activation=self.activation, backend=self.backend)
        return y if x.dim() == 3 else y.view(y.shape[0], *x.shape[1:-1], y.shape[-1])

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, demodulate={self.demodulate}, activation={self.activation!r}"


class ToRGB(nn.Module):
    """Colour of a pixel: rgb = T' x + τ, T' modulated and not demodulated   (Anokhin et al., arXiv 2011.13775).

    Args:
        in_features, style_features: I and S.
        backend: see `cips_fast.backends.choice`.

    Raises:
        ValueError: an argument that is no whole number, or out of range; an unknown backend.
    """

    def __init__(self, in_features: int, style_features: int, *, backend: str = "auto"):
        super().__init__()
        in_features, style_features = _checked_features(in_features=in_features, style_features=style_features)
        check_choice("backend", backend, BACKENDS)
        self.weight = nn.Parameter(torch.randn(3, in_features))  # [3, I]
        self.bias = nn.Parameter(torch.zeros(3))  # [3]
        self.affine = EqualLinear(style_features, in_features, bias_init=1.0)
        self.backend = backend

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Features x [B|1, P, I], style [B, S] -> colours [B, P, 3]."""
        check_features(x, style, self.weight.shape[1], self.affine)
        s = self.affine(style)  # [B, I]
        return functional.mod_fc(
            x, self.weight, s, self.bias, demodulate=False, activation="linear", backend=self.backend
        )


class Shortcut(nn.Module):
    """Equalised linear map without a bias, around a residual block that changes the width."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))  # [O, I]

    def forward(self) -> Tensor:
        """The map's matrix [O, I]."""
        return self.weight / math.sqrt(self.weight.shape[1])


class FourierEncoding(nn.Module):
    """x₀ = [sin(F c + φ); E(c)]: learned Fourier features next to a learned coordinate embedding.

    The geometry decides what the Fourier features see of a point, and where E continues: on a cylinder
    c = (cos πx, sin πx, y), and the first column of E follows its last; see `cips_fast.geometry`.

    Args:
        features: C, of each of the two halves.
        cells: rows of the embedding. It is stored [H, W, C], a cell's features side by side, and has the aspect of the
            geometry's images: W = H, or W = 2H on a cylinder.
        align_corners: whether coordinates -1 and 1 are the centres of the outermost cells (new models) or their outer
            edges (published checkpoints, and then only outside of training at the native size).
        max_frequency: F is drawn uniformly from ± this, in radians per unit of coordinate. The published code draws
            from ±√(9/D) = ±2.12.
        embedding_std: E is drawn N(0, std²). The published code draws N(0, 1).
        geometry: a key of `cips_fast.geometry.GEOMETRIES`.
        backend: see `cips_fast.backends.choice`.

    Raises:
        ValueError: an argument of another type, or out of range; an unknown geometry or backend; a geometry that wraps
            without `align_corners`, or has more dimensions than the backend takes.
    """

    def __init__(
        self,
        features: int,
        cells: int,
        *,
        align_corners: bool = True,
        max_frequency: float = 4.5**0.5,
        embedding_std: float = 1.0,
        geometry: str = "plane",
        backend: str = "auto",
    ):
        super().__init__()
        (features,) = _checked_features(features=features)
        cells = checked_count("cells", cells, MOST_CELLS)
        check_flag("align_corners", align_corners)
        max_frequency = checked_number("max_frequency", max_frequency, LARGEST_FREQUENCY)
        embedding_std = checked_number("embedding_std", embedding_std, LARGEST_FREQUENCY)
        check_choice("geometry", geometry, tuple(GEOMETRIES))
        check_choice("backend", backend, BACKENDS)
        chosen = GEOMETRIES[geometry]
        if backend == "triton" and chosen.dimensions not in TRITON_DIMENSIONS:
            raise ArgumentError(
                "backend",
                f"got 'triton', which encodes 2 or 3 coordinate dimensions, and a {geometry} has {chosen.dimensions}; "
                "may be 'auto', 'cpu' or 'reference'",
            )
        if chosen.wraps_any and not align_corners:
            raise ArgumentError(
                "align_corners",
                f"got False, must be True on a {geometry}, where cells have no outer edge on an axis that wraps",
            )
        self.geometry = geometry
        dims = chosen.dimensions
        self.freq = nn.Parameter(torch.empty(features, dims).uniform_(-max_frequency, max_frequency))  # [C, D]
        self.phase = nn.Parameter(torch.empty(features).uniform_(-(0.5**0.5), 0.5**0.5))  # [C]
        self.embedding = nn.Parameter(torch.randn(*chosen.size(cells), features) * embedding_std)  # [H, W, C]
        self.align_corners = align_corners
        self.backend = backend

    def points(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """What F is multiplied by, and where the table is read: coordinates [..., 2] -> [..., D] and [..., 2].

        They are of the parameters' dtype, and of float32 where that has fewer bits: 8 bits do not tell pixels apart.
        """
        coords = coords.to(torch.promote_types(self.freq.dtype, torch.float32))
        geometry = GEOMETRIES[self.geometry]
        return geometry.lift(coords), geometry.table_coords(coords)

    def table(self) -> Tensor:
        """What is read over [-1, 1]: the embedding, and its first cells again after the last on axes that wrap."""
        return GEOMETRIES[self.geometry].table(self.embedding)

    def forward(self, coords: Tensor, table_coords: Tensor | None = None) -> Tensor:
        """Coordinates [B|1, P, 2] -> features [B|1, P, 2C]; the embedding is read at `table_coords` if given."""
        coords, own_table_coords = self.points(coords)
        table_coords = own_table_coords if table_coords is None else table_coords
        return functional.fourier_encode(
            coords,
            self.freq.to(coords.dtype),
            self.phase.to(coords.dtype),
            self.table().to(coords.dtype),
            table_coords=None if table_coords is coords else table_coords,
            align_corners=self.align_corners,
            dtype=autocast_dtype(coords) or self.freq.dtype,
            backend=self.backend,
        )


def _checked_features(**counts: int) -> list[int]:
    """Numbers of channels or of style features as int, or ValueError that names the one that cannot be."""
    return [checked_count(name, count, MOST_FEATURES) for name, count in counts.items()]

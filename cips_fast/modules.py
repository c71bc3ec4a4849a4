"""The building blocks of CIPS as torch.nn modules, with equalised learning rates as in the published code.

Equalised learning rate (Karras et al., arXiv 1710.10196): parameters are drawn N(0, 1) and scaled at run time, so that
one Adam step changes every layer by the same relative amount.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import functional, grids
from . import reference as ref
from .autocast import autocast_dtype, without_autocast

GEOMETRIES = ("plane", "cylinder")


class EqualLinear(nn.Module):
    """Equalised linear layer y = x (m·W/√I)ᵀ + m·b, W drawn N(0, 1/m²); computed in the parameters' dtype.

    Args:
        in_features, out_features: I and O.
        bias_init: initial value of m·b.
        lr_multiplier: m; the layer learns m times as fast as its neighbours.
    """

    def __init__(self, in_features: int, out_features: int, *, bias_init: float = 0.0, lr_multiplier: float = 1.0):
        super().__init__()
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
    """

    def __init__(self, style_features: int = 512, layers: int = 8):
        super().__init__()
        self.layers = nn.ModuleList(
            EqualLinear(style_features, style_features, lr_multiplier=0.01) for _ in range(layers)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Latents z, drawn N(0, 1), [B, S] -> style latents w [B, S]."""
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
        backend: see `cips_fast.functional`.

    Raises:
        ValueError: an unknown activation or backend.
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
        functional.check_choice("activation", activation, ref.ACTIVATIONS)
        functional.check_choice("backend", backend, functional.BACKENDS)
        self.weight = nn.Parameter(torch.randn(out_features, in_features))  # [O, I]
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None  # [O]
        self.affine = EqualLinear(style_features, in_features, bias_init=1.0)
        self.demodulate = demodulate
        self.activation = activation
        self.backend = backend

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x [B|1, ..., I], style [B, S] -> [B, ..., O]."""
        if x.dim() < 2:
            raise ValueError(f"x: got shape {list(x.shape)}, must be [B, ..., {self.weight.shape[1]}]")
        pixels = x.reshape(x.shape[0], -1, x.shape[-1]) if x.dim() != 3 else x  # [B|1, P, I]
        y = functional.mod_fc(
            pixels,
            self.weight,
            self.affine(style),
            self.bias,
            demodulate=self.demodulate,
            activation=self.activation,
            backend=self.backend,
        )
        return y if x.dim() == 3 else y.view(y.shape[0], *x.shape[1:-1], y.shape[-1])

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, demodulate={self.demodulate}, activation={self.activation!r}"


class ToRGB(nn.Module):
    """Colour of a pixel: rgb = T' x + τ, T' modulated and not demodulated   (Anokhin et al., arXiv 2011.13775).

    Args:
        in_features, style_features: I and S.
        backend: see `cips_fast.functional`.

    Raises:
        ValueError: an unknown backend.
    """

    def __init__(self, in_features: int, style_features: int, *, backend: str = "auto"):
        super().__init__()
        functional.check_choice("backend", backend, functional.BACKENDS)
        self.weight = nn.Parameter(torch.randn(3, in_features))  # [3, I]
        self.bias = nn.Parameter(torch.zeros(3))  # [3]
        self.affine = EqualLinear(style_features, in_features, bias_init=1.0)
        self.backend = backend

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Features x [B|1, P, I], style [B, S] -> colours [B, P, 3]."""
        s = self.affine(style)  # [B, I]
        return functional.mod_fc(
            x, self.weight, s, self.bias, demodulate=False, activation="linear", backend=self.backend
        )


class FourierEncoding(nn.Module):
    """x₀ = [sin(F c + φ); E(c)]: learned Fourier features beside a learned coordinate embedding.

    On a cylinder of radius 1, with x in [-1, 1) once around it, c = (cos πx, sin πx, y), and E wraps: beside its last
    column lies its first.

    Args:
        features: C, of each of the two halves.
        cells: rows of the embedding; it is stored [H, W, C], a cell's features side by side, W = H on the plane and 2H
            on a cylinder.
        align_corners: whether coordinates -1 and 1 are the centres of the outermost cells (new models) or their outer
            edges (published checkpoints, and then only outside of training at the native size).
        max_frequency: F is drawn uniformly from ± this, in radians per unit of coordinate. The published code draws
            from ±√(9/D) = ±2.12.
        embedding_std: E is drawn N(0, std²). The published code draws N(0, 1).
        geometry: `plane` or `cylinder`.
        backend: see `cips_fast.functional`.

    Raises:
        ValueError: an unknown geometry, or a cylinder without `align_corners`.
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
        functional.check_choice("geometry", geometry, GEOMETRIES)
        self.wraps = geometry == "cylinder"
        if self.wraps and not align_corners:
            raise ValueError("align_corners: got False, must be True on a cylinder, where columns have no outer edge")
        dims, columns = (3, 2 * cells) if self.wraps else (2, cells)
        self.freq = nn.Parameter(torch.empty(features, dims).uniform_(-max_frequency, max_frequency))  # [C, D]
        self.phase = nn.Parameter(torch.empty(features).uniform_(-(0.5**0.5), 0.5**0.5))  # [C]
        self.embedding = nn.Parameter(torch.randn(cells, columns, features) * embedding_std)  # [H, W, C]
        self.align_corners = align_corners
        self.backend = backend

    def points(self, coords: Tensor) -> tuple[Tensor, Tensor]:
        """What F is multiplied by, and where the table is read: coordinates [..., 2] -> [..., D] and [..., 2]."""
        coords = coords.to(self.freq.dtype)
        if not self.wraps:
            return coords, coords
        return grids.on_cylinder(coords), torch.cat([grids.around(coords[..., :1]), coords[..., 1:]], -1)

    def table(self) -> Tensor:
        """What is read between [-1, 1]: the embedding, and on a cylinder its first column after its last, [H, W, C]."""
        return torch.cat([self.embedding, self.embedding[:, :1]], 1) if self.wraps else self.embedding

    def forward(self, coords: Tensor) -> Tensor:
        """Coordinates [B|1, P, 2] -> features [B|1, P, 2C]."""
        coords, at = self.points(coords)
        return functional.fourier_encode(
            coords,
            self.freq,
            self.phase,
            self.table(),
            table_coords=None if at is coords else at,
            align_corners=self.align_corners,
            dtype=autocast_dtype(coords),
            backend=self.backend,
        )

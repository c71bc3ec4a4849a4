"""Inversion: find the latent whose image is closest to given colours: of a picture, of a part of it or of a few points.

A CIPS generator computes the colour at any coordinate independently of all others. So the known colours may be
anywhere, and a step can compare as many of them as the memory holds. Only the latent is trained.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import grids, render
from .checks import ArgumentError, check_choice
from .files.pictures import NOT_FINITE
from .generator import CIPSGenerator
from .grids import WHOLE, Region
from .perceptual import MIN_SIDE_PIXELS, perceptual_distance
from .sampling import LARGEST_SEED

SPACES = ("w", "w+")
MAPPED_LATENTS = 4096  # from which the mean and the standard deviation of w are estimated
START_POINTS = 256  # at which the possible starts are compared
START_BATCH = 64  # latents
WARMUP_SHARE = 0.05  # of the steps, in which the learning rate rises
NOISE_SHARE = 0.75  # of the steps, in which noise is added to the latent
PERCEPTUAL_SIDE_PIXELS = 256  # shorter side of the image that the perceptual distance compares, at most
CROP_SIDE_PIXELS = 64  # of the crop that it compares if a step does not render the whole image
LARGEST_COLOUR = 10.0  # nominally 1, which a generator may exceed; larger values are probably bytes, 0 to 255


@dataclass(frozen=True)
class Projection:
    """The result of an inversion.

    Attributes:
        generator: the generator of the latent.
        w: style latent [1, S], or one a layer [1, num_layers, S].
        losses: for every step, the numbers `step` and `loss` and the terms of the loss without their weights: `pixel`,
            the mean squared error at the points that the step compared; `perceptual`, if it is used; and `prior`.
    """

    generator: CIPSGenerator
    w: Tensor
    losses: list[dict[str, float]]

    def render(self, height: int, width: int, region: Region = WHOLE) -> Tensor:
        """The image of the latent, of any size, float32 [3, height, width]; see `cips_fast.render`."""
        return render.image(self.generator, self.w, height, width, region)


class Stopped(KeyboardInterrupt):
    """An inversion was interrupted after at least one step; `projection` is its result so far."""

    def __init__(self, projection: Projection):
        super().__init__()
        self.projection = projection


class Diverged(FloatingPointError):
    """The loss is no longer finite; a lower learning rate helps.

    Attributes:
        loss: which loss, at which step.
    """

    def __init__(self, loss: str):
        super().__init__(loss)
        self.loss = loss

    def __str__(self) -> str:
        return f"{self.loss}: lower learning_rate"


Callback = Callable[[dict[str, float]], None]


def project(
    generator: CIPSGenerator,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    region: Region = WHOLE,
    space: str = "w",
    steps: int = 300,
    learning_rate: float = 0.2,
    pixels_per_step: int | None = None,
    perceptual: float = 0.0,
    prior: float = 1e-4,
    noise: float = 0.05,
    starts: int = 256,
    seed: int = 0,
    callback: Callback | None = None,
) -> Projection:
    """The latent whose image is closest to a picture at the picture's known pixels.

    min_v  mean_known (G(w(v), c) - t)²  +  perceptual · d(G(w(v)), t)  +  prior · mean(v²)      w(v) = w̄ + σ_w ⊙ v

    This follows the projector of StyleGAN2 (Karras et al., arXiv 1912.04958, appendix D), with w whitened by its mean
    and standard deviation. d is `perceptual_distance`; for it, unknown pixels of the target have the colours of G.
    Adam's learning rate rises for a twentieth of the steps and then falls as a cosine. The descent starts at w̄ or at
    the mapped latent that has the smallest error at 256 points. On a CPU, the same seed gives the same bits.

    Args:
        generator: runs in eval mode and without noise; afterwards it is as it was before.
        target: RGB in [-1, 1], [3, H, W]; hidden pixels may have any value.
        mask: true where the picture is known, bool [H, W]; the default is everywhere. Unknown pixels are rendered only
            for a perceptual distance of whole images.
        region: (x0, y0, x1, y1), where the picture lies, as in `grids.plane`; the default is all of the trained area.
        space: `w`, one latent for all layers, or `w+`, one a layer, which fits more closely but may leave the trained
            distribution.
        steps: at least 1.
        learning_rate: Adam's, for the whitened v.
        pixels_per_step: how many known pixels a step compares, chosen at random for each step; the perceptual distance
            then compares a random crop of at most 64² pixels at stride 1, 2, 4 …. By default all pixels are compared,
            and the perceptual distance compares whole images, reduced to 256 pixels a side if they are larger.
        perceptual: weight of the perceptual distance; more than 0 needs `pip install -e '.[project]'`.
        prior: weight of mean(v²), which is about 1 for latents that the generator was trained on.
        noise: standard deviation of the noise that is added to v in the first step; it falls quadratically to 0 at
            three quarters of the steps.
        starts: number of mapped latents that are tried as a start.
        seed: seed of all random numbers.
        callback: called with each entry of `losses` after its step.

    Raises:
        ValueError: an argument is none of the above, or the mask leaves no known pixel.
        ImportError: a perceptual distance is asked for and its packages are not installed.
        FloatingPointError: the loss is no longer finite, which a smaller learning rate may avoid; or the generator's
            colours are not finite from the start.
        Stopped: a KeyboardInterrupt came after the first step.
    """
    settings = _Settings(space, steps, learning_rate, pixels_per_step, prior, noise, starts, seed)
    if perceptual < 0 or not math.isfinite(perceptual):
        raise ArgumentError("perceptual", f"got {perceptual}, must be at least 0")
    image = _target_image(generator, target, mask, region)
    if perceptual and min(image.known.shape) < MIN_SIDE_PIXELS:
        height, width = image.known.shape
        wanted = f"at least {MIN_SIDE_PIXELS}x{MIN_SIDE_PIXELS} for a perceptual distance"
        raise ArgumentError("target", f"got {width}x{height} pixels, must be {wanted}")
    points = image.points()

    def errors(w: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        if perceptual and pixels_per_step is None:
            rgb = image.generated(generator, w)
            return {"pixel": image.error(rgb), "perceptual": image.distance(rgb)}
        terms = {"pixel": points.some(pixels_per_step, rng).errors(generator, w).mean()}
        if perceptual:
            crop = image.crop(rng)
            terms["perceptual"] = crop.distance(crop.generated(generator, w))
        return terms

    return _descend(generator, points, errors, {"perceptual": perceptual}, settings, callback)


def project_points(
    generator: CIPSGenerator,
    coords: Tensor,
    colours: Tensor,
    *,
    space: str = "w",
    steps: int = 300,
    learning_rate: float = 0.2,
    pixels_per_step: int | None = None,
    prior: float = 1e-4,
    noise: float = 0.05,
    starts: int = 256,
    seed: int = 0,
    callback: Callback | None = None,
) -> Projection:
    """The latent whose colours at some points are closest to given ones; its image fills in the rest.

    Args:
        coords: the points as for `generator.synthesis`, [P, 2], anywhere and in any order.
        colours: RGB in [-1, 1], [P, 3].
        others: as in `project`; a larger `prior` helps if there are few points.

    Raises:
        ValueError, FloatingPointError, Stopped: as in `project`.
    """
    settings = _Settings(space, steps, learning_rate, pixels_per_step, prior, noise, starts, seed)
    dims = generator.native_grid().shape[-1]
    if coords.dim() != 2 or coords.shape[1] != dims or not len(coords):
        raise ArgumentError("coords", f"got shape {list(coords.shape)}, must be [P, {dims}] with at least one point")
    if colours.shape != (len(coords), 3):
        raise ArgumentError("colours", f"got shape {list(colours.shape)}, must be {[len(coords), 3]}")
    _check_finite("coords", coords, math.inf)
    _check_finite("colours", colours, LARGEST_COLOUR)
    points = _Points(coords.to(generator.mean_latent), colours.to(generator.mean_latent))

    def errors(w: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        return {"pixel": points.some(pixels_per_step, rng).errors(generator, w).mean()}

    return _descend(generator, points, errors, {}, settings, callback)


@dataclass(frozen=True)
class _Settings:
    """Settings of the descent; see `project`."""

    space: str
    steps: int
    learning_rate: float
    pixels_per_step: int | None
    prior: float
    noise: float
    starts: int
    seed: int

    def __post_init__(self):
        check_choice("space", self.space, SPACES)
        if self.steps < 1:
            raise ArgumentError("steps", f"got {self.steps}, must be at least 1")
        if not 0 < self.learning_rate < math.inf:
            raise ArgumentError("learning_rate", f"got {self.learning_rate}, must be more than 0")
        if self.pixels_per_step is not None and self.pixels_per_step < 1:
            raise ArgumentError("pixels_per_step", f"got {self.pixels_per_step}, must be at least 1, or None for all")
        if not 0 <= self.starts <= MAPPED_LATENTS:
            raise ArgumentError("starts", f"got {self.starts}, must be 0 to {MAPPED_LATENTS}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ArgumentError("seed", f"got {self.seed}, must be 0 to {LARGEST_SEED}")
        for name in ("prior", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ArgumentError(name, f"got {getattr(self, name)}, must be at least 0")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rising = min(1.0, (step + 1) / (WARMUP_SHARE * self.steps))
        return self.learning_rate * rising * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def noise_in(self, step: int) -> float:
        """The standard deviation of the noise in a step."""
        return self.noise * max(0.0, 1 - step / (NOISE_SHARE * self.steps)) ** 2


@dataclass(frozen=True)
class _Points:
    """Known colours [P, 3] at coordinates [P, D]."""

    coords: Tensor
    colours: Tensor

    def some(self, count: int | None, rng: torch.Generator) -> "_Points":
        """`count` of them, chosen at random; all if it is None."""
        if count is None or count >= len(self.coords):
            return self
        chosen = torch.randperm(len(self.coords), generator=rng)[:count].to(self.coords.device)
        return _Points(self.coords[chosen], self.colours[chosen])

    def errors(self, generator: CIPSGenerator, w: Tensor) -> Tensor:
        """Mean squared error of each of B latents, [B]."""
        return (generator.synthesis(w, self.coords) - self.colours).square().mean((1, 2))


@dataclass(frozen=True)
class _TargetImage:
    """The image to match: colours [3, H, W] at coordinates [H, W, D], which count only where `known`, bool [H, W]."""

    coords: Tensor
    colours: Tensor
    known: Tensor

    def points(self) -> _Points:
        """The known pixels."""
        return _Points(self.coords[self.known], self.colours.permute(1, 2, 0)[self.known])

    def crop(self, rng: torch.Generator) -> "_TargetImage":
        """A random square of the image, at a random stride."""
        height, width = self.known.shape
        side = min(CROP_SIDE_PIXELS, height, width)
        strides = int(math.log2(min(height, width) // side)) + 1
        stride = 2 ** int(torch.randint(strides, (), generator=rng))
        span = (side - 1) * stride + 1
        top, left = (int(torch.randint(size - span + 1, (), generator=rng)) for size in (height, width))
        rows, columns = slice(top, top + span, stride), slice(left, left + span, stride)
        return _TargetImage(self.coords[rows, columns], self.colours[:, rows, columns], self.known[rows, columns])

    def generated(self, generator: CIPSGenerator, w: Tensor) -> Tensor:
        """The colours of a latent [1, ...] at these coordinates, [3, H, W]."""
        return generator.synthesis(w, self.coords[None])[0]

    def error(self, rgb: Tensor) -> Tensor:
        """Mean squared error of an image [3, H, W] at known pixels."""
        return (rgb - self.colours)[:, self.known].square().mean()

    def distance(self, rgb: Tensor) -> Tensor:
        """Perceptual distance of an image [3, H, W]; where the target is unknown, both have the image's colours."""
        seen = torch.where(self.known, rgb, rgb.detach())
        wanted = torch.where(self.known, self.colours, rgb.detach())
        seen, wanted = (_at_most(each[None], PERCEPTUAL_SIDE_PIXELS) for each in (seen, wanted))
        return perceptual_distance(seen, wanted)[0]


def _at_most(images: Tensor, side: int) -> Tensor:
    """Images [B, 3, H, W], reduced to a shorter side of at most `side` pixels by means over areas."""
    shorter = min(images.shape[2:])
    if shorter <= side:
        return images
    return F.interpolate(images, [round(size * side / shorter) for size in images.shape[2:]], mode="area")


def _target_image(generator: CIPSGenerator, target: Tensor, mask: Tensor | None, region: Region) -> _TargetImage:
    if target.dim() != 3 or target.shape[0] != 3 or not target.numel():
        raise ArgumentError("target", f"got shape {list(target.shape)}, must be [3, H, W]")
    height, width = target.shape[1:]
    if mask is None:
        mask = torch.ones(height, width, dtype=torch.bool)
    if mask.dtype != torch.bool or mask.shape != (height, width):
        raise ArgumentError("mask", f"got {mask.dtype} {list(mask.shape)}, must be torch.bool {[height, width]}")
    if not mask.any():
        raise ArgumentError("mask", "got no known pixel, must have at least one")
    _check_finite("target", target[:, mask.to(target.device)], LARGEST_COLOUR)
    render.check_region(region, generator.geometry)
    x, y = grids.axes(height, width, region, geometry=generator.geometry)
    y, x = torch.meshgrid(y, x, indexing="ij")
    coords, like = generator.in_native_units(torch.stack([x, y], -1)), generator.mean_latent
    return _TargetImage(coords.to(like), target.to(like), mask.to(like.device))


def _check_finite(name: str, values: Tensor, largest: float) -> None:
    """Raise ValueError unless all values are finite and no magnitude is above `largest`."""
    if not values.isfinite().all():
        raise ArgumentError(name, "got values that are not finite")
    if values.abs().max() > largest:
        least, most = values.min().item(), values.max().item()
        raise ArgumentError(name, f"got values from {least:g} to {most:g}, must be in [-1, 1]")


def _descend(
    generator: CIPSGenerator,
    points: _Points,
    errors: Callable[[Tensor, torch.Generator], dict[str, Tensor]],
    weights: dict[str, float],
    settings: _Settings,
    callback: Callback | None,
) -> Projection:
    """Minimise the weighted sum of the prior and the terms that `errors` returns for a latent."""
    rng = torch.Generator().manual_seed(settings.seed)
    losses: list[dict[str, float]] = []
    weights = {"pixel": 1.0, "prior": settings.prior, **weights}
    with _frozen(generator), torch.enable_grad():
        mean, spread, samples = _latents(generator, rng)
        v = _start(generator, points, mean, spread, samples, settings, rng).requires_grad_()
        optimizer = torch.optim.Adam([v], lr=settings.learning_rate)
        try:
            for step in range(settings.steps):
                optimizer.param_groups[0]["lr"] = settings.rate(step)
                noisy = v + settings.noise_in(step) * torch.randn(v.shape, generator=rng).to(v)
                terms = errors(mean + spread * noisy, rng) | {"prior": v.square().mean()}
                loss = sum(weights[name] * term for name, term in terms.items())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                entry = {"step": step, "loss": loss.item()} | {name: term.item() for name, term in terms.items()}
                if not math.isfinite(entry["loss"]):
                    raise Diverged(f"the loss is {entry['loss']} at step {step}")
                kept = (mean + spread * v).detach()
                losses.append(entry)
                if callback is not None:
                    callback(entry)
        except KeyboardInterrupt as stop:
            if not losses:
                raise
            raise Stopped(Projection(generator, kept, losses)) from stop
    return Projection(generator, kept, losses)


@contextmanager
def _frozen(generator: CIPSGenerator) -> Iterator[None]:
    """Eval mode, no noise and no gradients for the generator's parameters while the block runs."""
    trained = [(parameter, parameter.requires_grad) for parameter in generator.parameters()]
    modes = [(module, module.training) for module in generator.modules()]
    noise = generator.noise
    try:
        generator.requires_grad_(False).eval().noise = False
        yield
    finally:
        generator.noise = noise
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)
        for module, training in modes:
            module.training = training


@torch.no_grad()
def _latents(generator: CIPSGenerator, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [S] and standard deviation [S] of w, and the mapped latents [N, S] that they were computed from."""
    z = torch.randn(MAPPED_LATENTS, generator.style_features, generator=rng)
    w = generator.mapping(z.to(generator.mean_latent))
    return w.mean(0), w.std(0).clamp(min=1e-8), w


@torch.no_grad()
def _start(
    generator: CIPSGenerator,
    points: _Points,
    mean: Tensor,
    spread: Tensor,
    samples: Tensor,
    settings: _Settings,
    rng: torch.Generator,
) -> Tensor:
    """The best of the mean and some mapped latents, whitened: [1, S], or repeated for all layers [1, num_layers, S]."""
    tried = torch.cat([mean[None], samples[: settings.starts]])
    some = points.some(START_POINTS, rng)
    errors = torch.cat([some.errors(generator, w) for w in tried.split(START_BATCH)])
    if not errors.isfinite().any():
        raise FloatingPointError(NOT_FINITE)
    best = errors.nan_to_num(math.inf).argmin()
    v = ((tried[best] - mean) / spread)[None]
    return v if settings.space == "w" else v[:, None].repeat(1, generator.num_layers, 1)

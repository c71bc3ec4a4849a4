"""Render a movie of a walk from seed to seed or of a camera that zooms or pans, or a grid of mixed styles.

python -m cips_fast interpolate RUN --seeds 0-7 --loop --seconds 8 --out walk.mp4
python -m cips_fast interpolate RUN --seed 3 --zoom 64 --center 0.2,-0.1 --out zoom.mp4
python -m cips_fast interpolate RUN --seeds 0-3 --mix 4-8 --out mix.png

A walk follows a spline through the style latents w of the seeds, straight lines between them (linear), or great circles
between their latents z (spherical). With --zoom or --pan the movie shows seed 0; with several seeds it also walks from
one to the next while the camera moves. With --mix, each picture of the grid takes its layers before --crossover from
the seed of its row (--seeds) and the other layers from the seed of its column (--mix); the first row and column show
the seeds themselves. Frames of an MP4 are encoded as they come; those of a GIF or a WebP are held in memory until the
end.
"""

import argparse
import contextlib
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import camera, walks
from ..command_line import OptionError, numbers, whole_number
from ..console import complain
from ..files import pictures
from ..files.movie import LIMITS, MIN_FPS, Movie
from ..generator import CIPSGenerator
from ..geometry import GEOMETRIES
from ..grids import Region
from ..hardware import PRECISIONS
from ..render import RegionWarning, Renderer, check_region
from . import _options, _output
from ._options import options_named

HELP = "movie of a walk from seed to seed, a zoom or a pan; or grid of mixed styles"
WALK_SEEDS, CAMERA_SEEDS, MIX_SEEDS = list(range(8)), [0], list(range(4))
EARLY_SHARE = 0.25  # of the layers; these decide shapes mostly, the others colours
MAX_FRAMES = 100_000  # their latents are held in memory
# The smallest and the largest value of an option.
RANGES = {
    "seconds": (0.001, 1e6),
    "fps": (MIN_FPS, max(limits.max_fps for limits in LIMITS.values())),
    "zoom": (1e-6, 1e9),
}
LESS_MEMORY = ": use a smaller --size, fewer --seconds, or an .mp4, which is encoded as frames come"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    _options.add_source(parser)
    _options.add_latents(parser, "0-7", shown_default="0-7; 0 with --zoom or --pan; 0-3 with --mix")
    parser.set_defaults(seeds=None)  # the default depends on the other options
    _options.add_view(parser)
    movie = f"movie to write, {', '.join(LIMITS)}, or picture to write with --mix"
    _options.add_out(parser, "walk.mp4; mix.png with --mix", movie)
    parser.set_defaults(out=None)
    parser.add_argument(
        "--kind", choices=walks.KINDS, default="spline", help="kind of walk between seeds (default: %(default)s)"
    )
    parser.add_argument(
        "--loop",
        action="store_true",
        help="return to the beginning at the end of the movie, which then repeats without a jump",
    )
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="length of the movie in seconds (default: %(default)s)"
    )
    parser.add_argument("--fps", type=float, default=24.0, help="frames per second (default: %(default)s)")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--zoom",
        type=float,
        metavar="FACTOR",
        help="magnification at the end of a zoom, which has constant speed (default: no zoom)",
    )
    modes.add_argument(
        "--pan",
        type=numbers(2, _options.MAX_COORDINATE),
        metavar="X,Y",
        help="distance that the view moves, in coordinates; 2 is the whole width (default: no pan)",
    )
    modes.add_argument(
        "--mix", type=_options.parse_seeds, metavar="N-M,K", help="seeds to mix with --seeds in a grid (default: none)"
    )
    parser.add_argument(
        "--center",
        type=numbers(2, _options.MAX_COORDINATE),
        metavar="X,Y",
        help="centre of the view at the end of a zoom, in coordinates (default: the middle of --region)",
    )
    parser.add_argument(
        "--crossover",
        type=whole_number(0, 1000),
        metavar="LAYER",
        help="first layer that takes its style from --mix (default: the first after a quarter of the layers)",
    )


def run(args: argparse.Namespace) -> int:
    """Render the movie or the grid."""
    _check(args)
    args.out = args.out or Path("mix.png" if args.mix else "walk.mp4")
    generator = _options.open_generator(args)
    return _write_grid(args, generator) if args.mix else _write_movie(args, generator)


def _check(args: argparse.Namespace) -> None:
    """Raise OptionError for a value out of range, or for options that cannot be combined."""
    for name, given, needs in (("center", args.center, "zoom"), ("crossover", args.crossover, "mix")):
        if given is not None and getattr(args, needs) is None:
            raise OptionError(f"--{name}: needs --{needs}")
    if args.latents and args.mix is not None:
        raise OptionError("--latents: cannot be combined with --mix")
    if args.loop and (args.zoom is not None or args.mix is not None):
        raise OptionError(f"--loop: cannot be combined with --{'mix' if args.zoom is None else 'zoom'}")
    for name, (least, most) in RANGES.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            raise OptionError(f"--{name}: got {value}, must be a positive number, from {least:g} to {most:g}")
    if args.mix is not None:
        return
    frames = round(args.seconds * args.fps)
    if frames < 2:
        raise OptionError(
            f"--seconds: got {args.seconds}, which is less than 2 frames at {args.fps:g} frames per second"
        )
    if frames > MAX_FRAMES:
        raise OptionError(
            f"--seconds: got {args.seconds}, which is more than {MAX_FRAMES} frames at {args.fps:g} frames per second"
        )


@dataclass
class _View:
    """The settings with which pictures of any latent and any region are rendered."""

    generator: CIPSGenerator
    height: int
    width: int
    dtype: torch.dtype

    @classmethod
    def of(cls, args: argparse.Namespace, generator: CIPSGenerator, closest: float = 1.0) -> "_View":
        """The view that the options of `_options.add_view` ask for.

        Args:
            closest: the largest factor by which a camera magnifies `--region`.
        """
        width, height = args.size or _options.native_size(generator)
        generator = _options.with_embedding(args, generator, height, max(closest, 1))
        return cls(generator, height, width, PRECISIONS[args.precision])

    def pixels(self, w: Tensor, region: Region) -> np.ndarray:
        """uint8 [height, width, 3] of a latent [S] or [num_layers, S]."""
        renderer = Renderer(self.generator, w[None], self.height, self.width, region, dtype=self.dtype)
        return pictures.to_pixels(renderer.image())


def _write_movie(args: argparse.Namespace, generator: CIPSGenerator) -> int:
    """Write the movie of a walk, a moving camera, or both."""
    frames = round(args.seconds * args.fps)
    camera = args.zoom is not None or args.pan is not None
    args.seeds = args.seeds or (CAMERA_SEEDS if camera else WALK_SEEDS)
    chosen = {"latents": list(map(str, args.latents))} if args.latents else {"seeds": args.seeds}
    [(name, keys)] = chosen.items()
    if len(keys) == 1 and not camera:
        raise OptionError(f"--{name}: got {keys[0]} alone, must be at least 2 for a walk")
    with _options_named(args):
        regions = _regions(args, generator, frames)
        for region in {regions[0], regions[-1]}:  # the regions between them lie within these two
            check_region(region, generator.geometry)
        w = _walked(args, generator, frames)
        view = _View.of(args, generator, closest=args.zoom or 1.0)
    with _output.writable(args.out):
        with _options_named(args):
            movie = Movie(args.out, args.fps, view.height, view.width)
        _add_all(args, movie, view, list(zip(w, regions, strict=True)))
    size = {"width": view.width, "height": view.height}
    _output.say({"file": str(args.out)} | size | chosen | {"frames": frames, "fps": args.fps})
    return 0


def _add_all(args: argparse.Namespace, movie: Movie, view: _View, frames: list[tuple[Tensor, Region]]) -> None:
    """Render and add all frames. After an interrupt, print where the finished frames are."""
    try:
        with movie, _no_region_warnings():
            for style, region in tqdm(frames, unit="frame", leave=False, disable=None):
                movie.add(view.pixels(style, region))
    except OSError as error:
        raise _output.not_written(args.out, error) from None
    except KeyboardInterrupt:
        if movie.left:
            complain(f"stopped: {movie.frames} of {len(frames)} frames are in {movie.partial}")
        raise


def _walked(args: argparse.Namespace, generator: CIPSGenerator, frames: int) -> Tensor:
    """The style latents of all frames, [F, S] or [F, num_layers, S]."""
    if args.kind == "spherical" and len(args.seeds) > 1 and not args.latents:
        z = walks.walk(_options.latents(args.seeds, generator), frames, args.kind, closed=args.loop)
        with torch.no_grad():
            return generator.truncate(generator.mapping(z), args.truncation)
    if args.kind == "spherical" and args.latents:
        raise OptionError("--kind: got 'spherical', must be 'spline' or 'linear' with --latents, which have no z")
    keys = _options.chosen_latents(args, generator)
    if len(keys) == 1:
        return keys.expand(frames, *keys.shape[1:])
    return walks.walk(keys.flatten(1), frames, args.kind, closed=args.loop).unflatten(1, keys.shape[1:])


def _regions(args: argparse.Namespace, generator: CIPSGenerator, frames: int) -> list[Region]:
    """The region that each frame shows."""
    if args.zoom is not None:
        x0, y0, x1, y1 = args.region
        end = camera.magnified(args.region, args.zoom, args.center or ((x0 + x1) / 2, (y0 + y1) / 2))
        return camera.zoom(args.region, end, frames)
    if args.pan is not None:
        if args.loop and not GEOMETRIES[generator.geometry].leads_back(args.pan):
            raise OptionError(
                f"--loop: cannot be combined with --pan {args.pan[0]:g},{args.pan[1]:g}, not a whole turn of a panorama"
            )
        return camera.pan(args.region, args.pan, frames, closed=args.loop)
    return [args.region] * frames


def _write_grid(args: argparse.Namespace, generator: CIPSGenerator) -> int:
    """Write a style-mixing grid; its first row and column show the seeds that are mixed."""
    seeds = args.seeds or MIX_SEEDS
    crossover = round(generator.num_layers * EARLY_SHARE) if args.crossover is None else args.crossover
    view = _View.of(args, generator)
    tops, lefts = _offsets(len(seeds) + 1, view.height), _offsets(len(args.mix) + 1, view.width)
    height, width = tops[-1] + view.height, lefts[-1] + view.width
    _output.check_format(args, args.out, height, width, in_memory=True)
    rows, columns = (_options.seeds_latents(args, generator, group) for group in (seeds, args.mix))
    with _options_named(args):
        mixed_rows = walks.style_mixing_grid(generator, rows, columns, crossover)  # [R, C, L, S]
        check_region(args.region, generator.geometry)
    latents = [*columns, *(w for row, mixed in zip(rows, mixed_rows, strict=True) for w in (row, *mixed))]
    corners = list(itertools.product(tops, lefts))[1:]  # the first stays white
    with _output.writable(args.out):
        grid = np.full((height, width, 3), 255, np.uint8)
        with _no_region_warnings(), tqdm(latents, unit="picture", leave=False, disable=None) as bar:
            for (top, left), w in zip(corners, bar, strict=True):
                grid[top : top + view.height, left : left + view.width] = view.pixels(w, args.region)
        _output.save_picture(args.out, grid)
    size = {"width": width, "height": height}
    _output.say({"file": str(args.out)} | size | {"seeds": seeds, "mix": args.mix, "crossover": crossover})
    return 0


def _offsets(count: int, size: int) -> list[int]:
    """The first pixel of each picture in a row of pictures; the gap after the first picture is twice as wide."""
    gap = max(2, size // 32)
    return [index * (size + gap) + (gap if index else 0) for index in range(count)]


@contextlib.contextmanager
def _options_named(args: argparse.Namespace) -> Iterator[None]:
    """`_options.options_named`; a missing package for the movie's format becomes an error of --out."""
    camera = "pan" if args.zoom is None else "zoom"
    try:
        with options_named(args, factor="zoom", end=camera):
            yield
    except ImportError as error:
        raise OptionError(f"--out: {error}") from None


@contextlib.contextmanager
def _no_region_warnings() -> Iterator[None]:
    """Hide the warning that every picture would repeat; `check_region` has already given it once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RegionWarning)
        yield

"""A movie of a walk from seed to seed, of a camera that zooms or pans, or a picture of styles mixed.

python -m cips_fast interpolate RUN --seeds 0-7 --loop --seconds 8 --out walk.mp4
python -m cips_fast interpolate RUN --seed 3 --zoom 64 --center 0.2,-0.1 --out zoom.mp4
python -m cips_fast interpolate RUN --seeds 0-3 --mix 4-8 --out mix.png

A walk is a spline through the seeds' w, lines between them (linear), or great circles between their z (spherical). A
camera stays with seed 0 unless others are given; with several it moves while they change. --mix takes layers before
--crossover from --seeds, a row each, and the others from its own seeds, a column each; the first row and column show
the sources. An MP4 is encoded as frames come; a GIF or a WebP holds all of them in memory until the end.
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

from .. import walks
from ..command_line import numbers, whole_number
from ..console import complain
from ..files import pictures
from ..files.movie import LIMITS, SLOWEST, Movie
from ..generator import CIPSGenerator
from ..geometry import GEOMETRIES
from ..grids import Region
from ..render import Renderer, check_region
from . import _options
from ._options import CommandError, options_named
from ._output import check_format

HELP = "walks from seed to seed, zooms and pans as a movie; styles mixed"
WALK_SEEDS, CAMERA_SEEDS, MIX_SEEDS = list(range(8)), [0], list(range(4))
EARLY = 0.25  # share of the layers that a row of the matrix decides: shapes mostly, and colours are the column's
MOST_FRAMES = 100_000  # whose latents are held in memory
# The smallest and the largest number that an option takes.
RANGES = {
    "seconds": (0.001, 1e6),
    "fps": (SLOWEST, max(limits.fastest for limits in LIMITS.values())),
    "zoom": (1e-6, 1e9),
}
LESS_MEMORY = ": use a smaller --size, fewer --seconds, or an .mp4, which is encoded as frames come"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    _options.add_source(parser)
    _options.add_latents(parser, default="0-7")
    parser.set_defaults(seeds=None)  # which to take depends on what is asked for
    _options.add_view(parser)
    _options.add_out(parser, "walk.mp4", f"{', '.join(LIMITS)}; with --mix a picture, mix.png if not given")
    parser.set_defaults(out=None)
    add = parser.add_argument
    add("--kind", choices=walks.KINDS, default="spline", help="of walk (%(default)s)")
    add("--loop", action="store_true", help="return from the last seed to the first, without a seam")
    add("--seconds", type=float, default=8.0, help="length of the movie (%(default)s)")
    add("--fps", type=float, default=24.0, help="frames a second (%(default)s)")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--zoom", type=float, metavar="FACTOR", help="magnify up to this, at constant speed")
    modes.add_argument(
        *("--pan",), type=numbers(2, _options.FARTHEST), metavar="X,Y",
        help="move the view by this; 2 is the whole width",
    )  # fmt: skip
    modes.add_argument(
        *("--mix",), type=_options.parse_seeds, metavar="N-M,K", help="picture of --seeds mixed with these seeds"
    )
    add(
        *("--center",), type=numbers(2, _options.FARTHEST), metavar="X,Y",
        help="where a zoom leads (default: the middle)",
    )  # fmt: skip
    add(
        *("--crossover",), type=whole_number(0, 1000), metavar="LAYER",
        help="first layer of --mix's seeds (default: after a quarter of them)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Make the movie or the picture."""
    _check(args)
    args.out = args.out or Path("mix.png" if args.mix else "walk.mp4")
    generator = _options.open_generator(args)
    return _mix(args, generator) if args.mix else _film(args, generator)


def _check(args: argparse.Namespace) -> None:
    """Raise CommandError for options that do not go together."""
    for name, given, needs in (("center", args.center, "zoom"), ("crossover", args.crossover, "mix")):
        if given is not None and getattr(args, needs) is None:
            raise CommandError(f"--{name}: needs --{needs}")
    if args.latents and args.mix is not None:
        raise CommandError("--latents: cannot be combined with --mix")
    if args.loop and (args.zoom is not None or args.mix is not None):
        raise CommandError(f"--loop: cannot be combined with --{'mix' if args.zoom is None else 'zoom'}")
    for name, (least, most) in RANGES.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            raise CommandError(f"--{name}: got {value}, must be a positive number, from {least:g} to {most:g}")
    if args.mix is not None:
        return
    frames = round(args.seconds * args.fps)
    if frames < 2:
        raise CommandError(f"--seconds: got {args.seconds}, at {args.fps:g} frames a second less than 2 frames")
    if frames > MOST_FRAMES:
        raise CommandError(
            f"--seconds: got {args.seconds}, at {args.fps:g} frames a second more than {MOST_FRAMES} frames"
        )


@dataclass
class _View:
    """How pictures are rendered, of any latent and any region."""

    generator: CIPSGenerator
    height: int
    width: int
    dtype: torch.dtype

    @classmethod
    def of(cls, args: argparse.Namespace, generator: CIPSGenerator, closest: float = 1.0) -> "_View":
        """What the arguments of `common.add_view` ask for; `closest`: how much a camera magnifies `--region`."""
        width, height = args.size or _options.native_size(generator)
        generator = _options.with_embedding(args, generator, height, max(closest, 1))
        return cls(generator, height, width, _options.PRECISIONS[args.precision])

    def pixels(self, w: Tensor, region: Region) -> np.ndarray:
        """uint8 [height, width, 3] of a latent [S] or [num_layers, S]."""
        renderer = Renderer(self.generator, w[None], self.height, self.width, region, dtype=self.dtype)
        return pictures.to_pixels(renderer.image())


def _film(args: argparse.Namespace, generator: CIPSGenerator) -> int:
    """The movie of a walk, a camera's way, or both."""
    frames = round(args.seconds * args.fps)
    camera = args.zoom is not None or args.pan is not None
    args.seeds = args.seeds or (CAMERA_SEEDS if camera else WALK_SEEDS)
    chosen = {"latents": list(map(str, args.latents))} if args.latents else {"seeds": args.seeds}
    [(name, keys)] = chosen.items()
    if len(keys) == 1 and not camera:
        raise CommandError(f"--{name}: got {keys[0]} alone, a walk leads through 2 or more")
    with _options_named(args):
        regions = _regions(args, generator, frames)
        for region in {regions[0], regions[-1]}:  # what lies between goes no further beyond
            check_region(region, generator.geometry)
        w = _walked(args, generator, frames)
        view = _View.of(args, generator, closest=args.zoom or 1.0)
    with _options.writable(args.out):
        with _options_named(args):
            movie = Movie(args.out, args.fps, view.height, view.width)
        _add_all(args, movie, view, list(zip(w, regions, strict=True)))
    size = {"width": view.width, "height": view.height}
    _options.say({"file": str(args.out)} | size | chosen | {"frames": frames, "fps": args.fps})
    return 0


def _add_all(args: argparse.Namespace, movie: Movie, view: _View, frames: list[tuple[Tensor, Region]]) -> None:
    """Render and add all frames. If that is interrupted, say where those before it are."""
    try:
        with movie, _shown_region():
            for style, region in tqdm(frames, unit="frame", leave=False, disable=None):
                movie.add(view.pixels(style, region))
    except OSError as error:
        raise _options.not_written(args.out, error) from None
    except KeyboardInterrupt:
        if movie.left:
            complain(f"stopped: {movie.frames} of {len(frames)} frames are in {movie.partial}")
        raise


def _walked(args: argparse.Namespace, generator: CIPSGenerator, frames: int) -> Tensor:
    """Style latents of all frames, [F, S] or [F, num_layers, S]."""
    if args.kind == "spherical" and len(args.seeds) > 1 and not args.latents:
        z = walks.walk(_options.latents(args.seeds, generator), frames, args.kind, closed=args.loop)
        with torch.no_grad():
            return generator.truncate(generator.mapping(z), args.truncation)
    if args.kind == "spherical" and args.latents:
        raise CommandError("--kind: got spherical, which leads between seeds, not between --latents")
    keys = _options.chosen_latents(args, generator)
    if len(keys) == 1:
        return keys.expand(frames, *keys.shape[1:])
    return walks.walk(keys.flatten(1), frames, args.kind, closed=args.loop).unflatten(1, keys.shape[1:])


def _regions(args: argparse.Namespace, generator: CIPSGenerator, frames: int) -> list[Region]:
    """What every frame shows."""
    if args.zoom is not None:
        x0, y0, x1, y1 = args.region
        end = walks.magnified(args.region, args.zoom, args.center or ((x0 + x1) / 2, (y0 + y1) / 2))
        return walks.zoom(args.region, end, frames)
    if args.pan is not None:
        if args.loop and not GEOMETRIES[generator.geometry].leads_back(args.pan):
            raise CommandError(
                f"--loop: with --pan {args.pan[0]:g},{args.pan[1]:g} needs whole turns of a panorama, 2,0"
            )
        return walks.pan(args.region, args.pan, frames, closed=args.loop)
    return [args.region] * frames


def _mix(args: argparse.Namespace, generator: CIPSGenerator) -> int:
    """The picture of a style-mixing matrix, its sources along the first row and column."""
    seeds = args.seeds or MIX_SEEDS
    crossover = round(generator.num_layers * EARLY) if args.crossover is None else args.crossover
    view = _View.of(args, generator)
    tops, lefts = _places(len(seeds) + 1, view.height), _places(len(args.mix) + 1, view.width)
    height, width = tops[-1] + view.height, lefts[-1] + view.width
    check_format(args, args.out, height, width, in_memory=True)
    rows, columns = (_options.seeds_latents(args, generator, group) for group in (seeds, args.mix))
    with _options_named(args):
        matrix = walks.mixing(generator, rows, columns, crossover)  # [R, C, L, S]
        check_region(args.region, generator.geometry)
    latents = [*columns, *(w for row, mixed in zip(rows, matrix, strict=True) for w in (row, *mixed))]
    corners = list(itertools.product(tops, lefts))[1:]  # the first stays white
    with _options.writable(args.out):
        table = np.full((height, width, 3), 255, np.uint8)
        with _shown_region(), tqdm(latents, unit="picture", leave=False, disable=None) as bar:
            for (top, left), w in zip(corners, bar, strict=True):
                table[top : top + view.height, left : left + view.width] = view.pixels(w, args.region)
        _options.save_picture(args.out, table)
    size = {"width": width, "height": height}
    _options.say({"file": str(args.out)} | size | {"seeds": seeds, "mix": args.mix, "crossover": crossover})
    return 0


def _places(count: int, size: int) -> list[int]:
    """Where pictures of a size begin, side by side, the first set apart from the others."""
    gap = max(2, size // 32)
    return [index * (size + gap) + (gap if index else 0) for index in range(count)]


@contextlib.contextmanager
def _options_named(args: argparse.Namespace) -> Iterator[None]:
    """`common.options_named`; also what a movie format lacks, as an error of --out."""
    camera = "zoom" if args.zoom is not None else "pan"
    try:
        with options_named(args, factor="zoom", end=camera):
            yield
    except ImportError as error:
        raise CommandError(f"--out: {error}") from None


@contextlib.contextmanager
def _shown_region() -> Iterator[None]:
    """Without the warning that every picture would repeat, once `check_region` has given it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="region: ")
        yield

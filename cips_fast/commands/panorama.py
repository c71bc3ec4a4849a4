"""Render panoramas of 360 degrees, whose left and right edges meet.

A generator with a cylinder's geometry gives a panorama for each seed. With a generator of plane images, an even number
of seeds stand around a circle, and each blends into the next.

The command prints how well the edges meet, for colours from -1 to 1. `seam` is the largest difference between the two
ends. `step` is the mean difference between the last column and the first. `beside` is the mean difference between two
neighbouring columns close to the edge; `step` should not be much larger.
"""

import argparse
from pathlib import Path

from ..command_line import OptionError
from ..generator import CIPSGenerator
from ..geometry import GEOMETRIES
from ..hardware import PRECISIONS
from ..panorama import Panorama
from ..render import Picture, Renderer
from ..repeats import seam
from ._options import (
    add_out,
    add_precision,
    add_seeds,
    add_source,
    open_generator,
    options_named,
    parse_size,
    seeds_latents,
)
from ._output import say, write_picture

HELP = "panoramas of 360 degrees, from a cylinder's generator or from blended latents"
LESS_MEMORY = ": use a smaller --size, or a .tif, whose memory does not grow with the size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_source(parser)
    add_seeds(parser, default="0-5")
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="WxH",
        help="size of a panorama in pixels (default: the generator's own height; the width is twice the height for a "
        "cylinder, and the height for each seed of a plane)",
    )
    add_precision(parser)
    add_out(
        parser,
        "panorama.png",
        "picture to write; a cylinder's generator writes one for each seed, with the seed in its name",
    )


def run(args: argparse.Namespace) -> int:
    """Render panoramas, write them, and print how well their edges meet."""
    generator = open_generator(args)
    for path, picture, turn in _panoramas(args, generator):
        write_picture(args, path, picture)
        met = seam(picture, *turn)
        size = {"width": picture.width, "height": picture.height}
        say({"file": str(path), **size, "seam": met.gap, "step": round(met.step, 6), "beside": round(met.beside, 6)})
    return 0


def _panoramas(args: argparse.Namespace, generator: CIPSGenerator) -> list[tuple[Path, Picture, tuple[float, float]]]:
    """For each panorama its path, its picture, and (left, right), two coordinates of the same longitude."""
    latents = seeds_latents(args, generator, args.seeds)
    geometry, count = GEOMETRIES[generator.geometry], len(latents)
    dtype, closed = PRECISIONS[args.precision], geometry.wraps[0]
    width, height = args.size or (generator.size * (geometry.aspect if closed else count), generator.size)
    if not closed and count % 2:
        more = f"{args.seeds[0]},{args.seeds[0] + 1}" if count == 1 else f"{count + 1} of them"
        raise OptionError(
            f"--seeds: got {count}, must be an even number of seeds, such as {more}, because every second picture "
            "around the circle is mirrored"
        )
    with options_named(args):
        if not closed:
            return [(args.out, Panorama(generator, latents, height, width, dtype=dtype), (0, count))]
        pictures = [Renderer(generator, w, height, width, dtype=dtype) for w in latents]
    if len(pictures) == 1:
        return [(args.out, pictures[0], (-1, 1))]
    paths = [args.out.with_stem(f"{args.out.stem}-{seed:04d}") for seed in args.seeds]
    return [(path, picture, (-1, 1)) for path, picture in zip(paths, pictures, strict=True)]

"""Panoramas of 360 degrees, whose left and right edges meet.

Of a generator with a cylinder's geometry it is one latent's image, a picture for each seed. Of a generator of plane
images the seeds stand round a circle and blend into each other, an even number of them.

It says how the edges meet: `seam`, the largest difference of colours at the two ends; `step`, the mean one from the
last column to the first, and `beside`, that of the columns next to them. Colours are from -1 to 1.
"""

import argparse
from pathlib import Path

from ..generator import CIPSGenerator
from ..geometry import GEOMETRIES
from ..panorama import Panorama
from ..render import Picture, Renderer
from ..repeats import seam
from ._options import (
    PRECISIONS,
    CommandError,
    add_out,
    add_precision,
    add_seeds,
    add_source,
    open_generator,
    options_named,
    parse_size,
    say,
    seeds_latents,
)
from ._output import write_picture

HELP = "360-degree panoramas, of a cylinder's generator or of blended latents"
LESS_MEMORY = ": use a smaller --size, or a .tif, whose memory does not grow with its size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `panorama`."""
    add_source(parser)
    add_seeds(parser, default="0-5")
    parser.add_argument(
        *("--size",), type=parse_size, metavar="WxH",
        help="pixels (default: as high as the generator's own images, twice as wide or a square for each latent)",
    )  # fmt: skip
    add_precision(parser)
    add_out(
        parser, "panorama.png", "a picture; of several seeds on a cylinder, one for each, with its seed in its name"
    )


def run(args: argparse.Namespace) -> int:
    """Render, and say how the edges meet."""
    generator = open_generator(args)
    for path, picture, turn in _panoramas(args, generator):
        write_picture(args, path, picture)
        met = seam(picture, *turn)
        size = {"width": picture.width, "height": picture.height}
        say({"file": str(path), **size, "seam": met.gap, "step": round(met.step, 6), "beside": round(met.beside, 6)})
    return 0


def _panoramas(args: argparse.Namespace, generator: CIPSGenerator) -> list[tuple[Path, Picture, tuple[float, float]]]:
    """Where to, what, and the two coordinates that are one place."""
    latents = seeds_latents(args, generator, args.seeds)
    geometry, count = GEOMETRIES[generator.geometry], len(latents)
    dtype, closed = PRECISIONS[args.precision], geometry.wraps[0]
    width, height = args.size or (generator.size * (geometry.aspect if closed else count), generator.size)
    if not closed and count % 2:
        more = f"{args.seeds[0]},{args.seeds[0] + 1}" if count == 1 else f"{count + 1} of them"
        raise CommandError(
            f"--seeds: got {count}, must be an even number of seeds, such as {more}: every second picture on the "
            "circle is mirrored, so that neighbours meet"
        )
    with options_named(args):
        if not closed:
            return [(args.out, Panorama(generator, latents, height, width, dtype=dtype), (0, count))]
        pictures = [Renderer(generator, w, height, width, dtype=dtype) for w in latents]
    if len(pictures) == 1:
        return [(args.out, pictures[0], (-1, 1))]
    paths = [args.out.with_stem(f"{args.out.stem}-{seed:04d}") for seed in args.seeds]
    return [(path, picture, (-1, 1)) for path, picture in zip(paths, pictures, strict=True)]

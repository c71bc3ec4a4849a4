"""Images of latents, of any size and region, from the native grid up to gigapixels.

With a file for --out all seeds go into one picture, row by row; with a folder every seed has a file of its own. A .tif
of one seed is written tile by tile as a pyramidal BigTIFF, in memory that does not grow with the image, and an
interrupted one goes on where it stopped when the same command is given again.
"""

import argparse
import math

from .. import pictures
from ..render import Renderer
from .common import (
    CommandError,
    add_out,
    add_seeds,
    add_source,
    add_view,
    open_generator,
    renderers_of,
    save_picture,
    say,
    style_latents,
)
from .output import check_format, render_pixels, write_picture

HELP = "images of latents: grids or single files, any size and region"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `sample`."""
    add_source(parser)
    add_seeds(parser, default="0-11")
    add_view(parser)
    add_out(parser, "samples.png", "a picture for all seeds, or a folder for one picture each")
    parser.add_argument("--columns", type=int, help="of a picture with several seeds (default: nearly a square)")
    parser.add_argument(
        "--format", choices=sorted({e[1:] for e in pictures.FORMATS}), default="png", help="in a folder (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Render, and say where to."""
    if args.columns is not None and args.columns < 1:
        raise CommandError(f"--columns: got {args.columns}, must be at least 1")
    generator = open_generator(args)
    renderers = renderers_of(args, generator, style_latents(generator, args.seeds, args.truncation))
    if args.out.suffix and len(renderers) > 1:
        _write_sheet(args, renderers)
        return 0
    for seed, renderer in zip(args.seeds, renderers, strict=True):
        path = args.out if args.out.suffix else args.out / f"seed-{seed:04d}.{args.format}"
        write_picture(path, renderer)
        say({"file": str(path), "width": renderer.width, "height": renderer.height, "seeds": [seed]})
    return 0


def _write_sheet(args: argparse.Namespace, renderers: list[Renderer]) -> None:
    """All images in one file."""
    columns = args.columns or math.ceil(math.sqrt(len(renderers)))
    rows = -(-len(renderers) // columns)
    check_format(args.out, rows * renderers[0].height, columns * renderers[0].width)
    images = [render_pixels(one, f"seed {seed}") for seed, one in zip(args.seeds, renderers, strict=True)]
    sheet = pictures.sheet(images, columns)
    save_picture(args.out, sheet)
    say({"file": str(args.out), "width": sheet.shape[1], "height": sheet.shape[0], "seeds": args.seeds})

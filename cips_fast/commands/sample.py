"""Images of latents, of any size and region, from the native grid up to gigapixels.

With a file for --out all seeds go into one picture, row by row; with a folder every seed has a file of its own. A .tif
of one seed is written tile by tile as a pyramidal BigTIFF, in memory that does not grow with the image. If it is
interrupted, the same command continues where it stopped.
"""

import argparse
import math
import os
from pathlib import Path

from ..command_line import whole_number
from ..files import pictures
from ..render import Renderer
from ._options import (
    add_latents,
    add_out,
    add_source,
    add_view,
    chosen_latents,
    open_generator,
    renderers_of,
    save_picture,
    say,
    writable,
)
from ._output import check_format, render_pixels, write_picture

HELP = "images of latents: grids or single files, any size and region"
LESS_MEMORY = ": use a smaller --size, or a .tif of one picture, whose memory does not grow with its size"
MOST_COLUMNS = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `sample`."""
    add_source(parser)
    add_latents(parser, default="0-11")
    add_view(parser)
    add_out(parser, "samples.png", "a picture for all seeds, or a folder for one picture each")
    parser.add_argument(
        *("--columns",), type=whole_number(1, MOST_COLUMNS),
        help="of a picture with several seeds (default: nearly a square)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=sorted({e[1:] for e in pictures.FORMATS}), default="png", help="in a folder (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Render, and say where to."""
    generator = open_generator(args)
    renderers = renderers_of(args, generator, chosen_latents(args, generator))
    ending = args.out.suffix.lower()
    one_file = ending in pictures.FORMATS or (ending and not os.path.isdir(args.out))
    if one_file and len(renderers) > 1:
        _write_sheet(args, renderers)
        return 0
    for number, renderer in enumerate(renderers):
        name = f"latent-{number:04d}" if args.latents else f"seed-{args.seeds[number]:04d}"
        path = args.out if one_file else args.out / f"{name}.{args.format}"
        write_picture(args, path, renderer)
        _say(args, path, renderer.height, renderer.width, slice(number, number + 1))
    return 0


def _write_sheet(args: argparse.Namespace, renderers: list[Renderer]) -> None:
    """All images in one file."""
    columns = args.columns or math.ceil(math.sqrt(len(renderers)))
    rows = -(-len(renderers) // columns)
    option = "--columns" if columns > len(renderers) else "--size"
    size = (rows * renderers[0].height, columns * renderers[0].width)
    check_format(args, args.out, *size, in_memory=True, option=option)
    with writable(args.out):
        images = [render_pixels(one, f"{number} of {len(renderers)}") for number, one in enumerate(renderers, 1)]
        sheet = pictures.sheet(images, columns)
        save_picture(args.out, sheet)
    _say(args, args.out, *sheet.shape[:2], slice(None))


def _say(args: argparse.Namespace, path: Path, height: int, width: int, which: slice) -> None:
    chosen = {"latents": list(map(str, args.latents[which]))} if args.latents else {"seeds": args.seeds[which]}
    say({"file": str(path), "width": width, "height": height, **chosen})

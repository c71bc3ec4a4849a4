"""Render images of latents, of any size and any region, up to gigapixels.

If --out is a file, it shows the images of all seeds, row by row; if --out is a folder, it receives a file for each
seed. A .tif of one seed is written tile by tile as a pyramidal BigTIFF, and needs no more memory for a larger image. If
the command is interrupted, the same command continues where it stopped.
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
)
from ._output import check_format, render_pixels, save_picture, say, writable, write_picture

HELP = "images of latents, in a grid or in single files, of any size and region"
LESS_MEMORY = ": use a smaller --size, or a .tif of one picture, whose memory does not grow with the size"
MAX_COLUMNS = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_source(parser)
    add_latents(parser, default="0-11")
    add_view(parser)
    add_out(parser, "samples.png", "picture for all seeds, or folder for a picture of each seed")
    parser.add_argument(
        "--columns",
        type=whole_number(1, MAX_COLUMNS),
        help="number of columns in a picture of several seeds (default: about as many as rows)",
    )
    parser.add_argument(
        "--format",
        choices=sorted({ending[1:] for ending in pictures.FORMATS}),
        default="png",
        help="format of the pictures in a folder (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Render the images, write them, and print where they are."""
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
    """Write all images into one file."""
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

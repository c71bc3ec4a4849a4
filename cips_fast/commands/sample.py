"""Render images of latents, of any size and any region, up to gigapixels.

If --out is a file, it shows the images of all seeds, row by row; if --out is a folder, it receives a file for each
seed. A .tif of one seed is written tile by tile as a pyramidal BigTIFF, and needs no more memory for a larger image. If
the command is interrupted, the same command continues where it stopped.

An image may be repeated with --repeat along x or y, where the generator's geometry wraps. Where it wraps along both,
as a torus does, the command also prints how well opposite edges of one image meet, for colours from -1 to 1: `seam_x`
and `seam_y` are the largest differences between the two ends, `step_x` and `step_y` the mean differences between the
last column and the first, or the last row and the first, and `beside_x` and `beside_y` the mean differences between
the columns or rows next to them.
"""

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..checks import shown
from ..command_line import OptionError, whole_number
from ..files import pictures
from ..geometry import GEOMETRIES, Region
from ..render import Picture, Renderer
from ..repeats import Repeated, check_repeats, seam
from ._options import (
    MAX_SIDE_PIXELS,
    add_latents,
    add_out,
    add_source,
    add_view,
    chosen_latents,
    open_generator,
    options_named,
    renderers_of,
)
from ._output import check_format, render_pixels, save_picture, say, writable, write_picture

HELP = "images of latents, in a grid or in single files, of any size and region"
LESS_MEMORY = ": use a smaller --size, or a .tif of one picture, whose memory does not grow with the size"
MAX_COLUMNS = 1 << 16
MAX_REPEATS = 1024  # copies of an image along one axis


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
    parser.add_argument(
        "--repeat",
        type=parse_repeat,
        default=(1, 1),
        metavar="AxD",
        help="number of copies of each image across and down, along axes that the geometry wraps (default: 1x1)",
    )


def parse_repeat(text: str) -> tuple[int, int]:
    """`3x2` as (3, 2): three copies across, two down."""
    parts = text.lower().split("x")
    fits = len(parts) == 2 and all(part.isdecimal() and 1 <= int(part[:9]) <= MAX_REPEATS for part in parts)
    if not fits:
        raise argparse.ArgumentTypeError(
            f"got {shown(text)}, must be ACROSSxDOWN, both from 1 to {MAX_REPEATS}, such as 3x2"
        )
    return int(parts[0]), int(parts[1])


def run(args: argparse.Namespace) -> int:
    """Render the images, write them, and print where they are."""
    generator = open_generator(args)
    with options_named(args):
        check_repeats(*args.repeat, args.region, generator.geometry)
    renderers = renderers_of(args, generator, chosen_latents(args, generator))
    images = _repeated(args, renderers)
    ending = args.out.suffix.lower()
    one_file = ending in pictures.FORMATS or (ending and not os.path.isdir(args.out))
    if one_file and len(images) > 1:
        _write_sheet(args, images)
        return 0
    for number, (renderer, image) in enumerate(zip(renderers, images, strict=True)):
        name = f"latent-{number:04d}" if args.latents else f"seed-{args.seeds[number]:04d}"
        path = args.out if one_file else args.out / f"{name}.{args.format}"
        write_picture(args, path, image)
        edges = _edges(renderer, args.region, generator.geometry)
        _say(args, path, image.height, image.width, slice(number, number + 1), edges)
    return 0


def _write_sheet(args: argparse.Namespace, images: list[Picture]) -> None:
    """Write all images into one file."""
    columns = args.columns or math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    option = "--columns" if columns > len(images) else "--size"
    size = (rows * images[0].height, columns * images[0].width)
    check_format(args, args.out, *size, in_memory=True, option=option)
    with writable(args.out):
        rendered = [render_pixels(image, f"{number} of {len(images)}") for number, image in enumerate(images, 1)]
        sheet = pictures.sheet(rendered, columns)
        save_picture(args.out, sheet)
    _say(args, args.out, *sheet.shape[:2], slice(None), {})


def _repeated(args: argparse.Namespace, renderers: list[Renderer]) -> list[Picture]:
    """The images as `--repeat` asks for them."""
    if args.repeat == (1, 1):
        return list(renderers)
    across, down = args.repeat
    longest = max(across * renderers[0].width, down * renderers[0].height)
    if longest > MAX_SIDE_PIXELS:
        raise OptionError(
            f"--repeat: got {across}x{down}, which makes a side of {longest} pixels, must be at most {MAX_SIDE_PIXELS}"
        )
    return [Repeated(renderer, across, down) for renderer in renderers]


def _edges(picture: Picture, region: Region, geometry: str) -> dict[str, float]:
    """How opposite edges of an image meet along x and along y; empty unless both pairs are the same points."""
    if not all(GEOMETRIES[geometry].whole_turns(region)):
        return {}
    x0, y0, x1, y1 = region
    met = {"x": seam(picture, x0, x1, axis="x"), "y": seam(picture, y0, y1, axis="y")}
    return {
        f"{name}_{axis}": round(value, 6)
        for axis, ends in met.items()
        for name, value in (("seam", ends.gap), ("step", ends.step), ("beside", ends.beside))
    }


def _say(
    args: argparse.Namespace, path: Path, height: int, width: int, which: slice, edges: Mapping[str, float]
) -> None:
    chosen = {"latents": list(map(str, args.latents[which]))} if args.latents else {"seeds": args.seeds[which]}
    say({"file": str(path), "width": width, "height": height, **chosen, **edges})

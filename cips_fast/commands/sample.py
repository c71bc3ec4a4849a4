"""Images of latents, of any size and region, from the native grid up to gigapixels.

With a file for --out all seeds go into one picture, row by row; with a folder every seed has a file of its own. A .tif
of one seed is written tile by tile as a pyramidal BigTIFF, in memory that does not grow with the image. If it is
interrupted, the same command continues where it stopped.

Images of a generator whose geometry wraps may be repeated with --repeat. Where the geometry wraps along both x and y,
such as a torus, the output also says how opposite edges of one image meet, for each axis: `seam`, the largest
difference of colours at the two ends; `step`, the mean one from the last column or row to the first, and `beside`, that
of the columns or rows next to them, each with `_x` or `_y` after its name. Colours are from -1 to 1.
"""

import argparse
import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..checks import shown
from ..command_line import whole_number
from ..files import pictures
from ..geometry import GEOMETRIES, Region
from ..render import Picture, Renderer
from ..repeats import Repeated, check_repeats, seam
from ._options import (
    LONGEST_SIDE,
    CommandError,
    add_latents,
    add_out,
    add_source,
    add_view,
    chosen_latents,
    open_generator,
    options_named,
    renderers_of,
    save_picture,
    say,
    writable,
)
from ._output import check_format, render_pixels, write_picture

HELP = "images of latents: grids or single files, any size and region"
LESS_MEMORY = ": use a smaller --size, or a .tif of one picture, whose memory does not grow with its size"
MOST_COLUMNS = 1 << 16
MOST_REPEATS = 1024  # of an image along one axis


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
    parser.add_argument(
        "--repeat",
        type=parse_repeat,
        default=(1, 1),
        metavar="AxD",
        help="copies of each image across and down, for a geometry that wraps along x or y (default: 1x1)",
    )


def parse_repeat(text: str) -> tuple[int, int]:
    """`3x2` as (3, 2): three copies across, two down."""
    parts = text.lower().split("x")
    fits = len(parts) == 2 and all(part.isdecimal() and 1 <= int(part[:9]) <= MOST_REPEATS for part in parts)
    if not fits:
        raise argparse.ArgumentTypeError(
            f"got {shown(text)}, must be ACROSSxDOWN, both from 1 to {MOST_REPEATS}, such as 3x2"
        )
    return int(parts[0]), int(parts[1])


def run(args: argparse.Namespace) -> int:
    """Render, and say where to."""
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
    """All images in one file."""
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
    if longest > LONGEST_SIDE:
        raise CommandError(
            f"--repeat: got {across}x{down}, which makes a side of {longest} pixels, must be at most {LONGEST_SIDE}"
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

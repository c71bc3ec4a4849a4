"""Images of latents, of any size and region, from the native grid up to gigapixels.

With a file for --out all seeds go into one picture, row by row; with a folder every seed has a file of its own. A .tif
is written tile by tile as a pyramidal BigTIFF, in memory that does not grow with the image, and an interrupted one goes
on where it stopped when the same command is given again.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import pictures, pyramid
from ..render import Renderer, tiles
from .common import (
    CommandError,
    add_out,
    add_seeds,
    add_source,
    add_view,
    check_writable,
    open_generator,
    renderers_of,
    save_picture,
    say,
    style_latents,
)

HELP = "images of latents: grids or single files, any size and region"
LARGEST = 1 << 28  # pixels that are held in memory at once
TILE = 512


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
    latents = style_latents(generator, args.seeds, args.truncation)
    renderers = renderers_of(args, generator, latents)
    if not args.out.suffix:
        for seed, renderer in zip(args.seeds, renderers, strict=True):
            _write(args.out / f"seed-{seed:04d}.{args.format}", renderer, args, [seed])
    elif len(renderers) == 1:
        _write(args.out, renderers[0], args, args.seeds)
    else:
        _write_sheet(args, renderers)
    return 0


def _write(path: Path, renderer: Renderer, args: argparse.Namespace, seeds: list[int]) -> None:
    """One image to one file."""
    kind = _check(path, renderer.height, renderer.width)
    if kind == "TIFF":
        _stream(path, renderer)
    else:
        save_picture(path, _pixels(renderer, path.name))
    say({"file": str(path), "width": renderer.width, "height": renderer.height, "seeds": seeds})


def _write_sheet(args: argparse.Namespace, renderers: list[Renderer]) -> None:
    """All images in one file."""
    columns = args.columns or math.ceil(math.sqrt(len(renderers)))
    rows = -(-len(renderers) // columns)
    _check(args.out, rows * renderers[0].height, columns * renderers[0].width)
    images = [_pixels(one, f"seed {seed}") for seed, one in zip(args.seeds, renderers, strict=True)]
    sheet = pictures.sheet(images, columns)
    save_picture(args.out, sheet)
    say({"file": str(args.out), "width": sheet.shape[1], "height": sheet.shape[0], "seeds": args.seeds})


def _check(path: Path, height: int, width: int) -> str:
    """The format, if it and the folder take such a picture."""
    try:
        kind = pictures.format_of(path, height, width)
    except ValueError as error:
        raise CommandError(f"--{error}") from None
    if height * width > LARGEST and kind != "TIFF":
        raise CommandError(
            f"--size: got {height * width} pixels in one {kind}, may be {LARGEST}; one seed's .tif may be larger"
        )
    check_writable(path)
    return kind


def _stream(path: Path, renderer: Renderer) -> None:
    """The image as a pyramid of tiles, or the rest of it."""

    def tile(rows: slice, columns: slice) -> np.ndarray:
        return pictures.to_pixels(renderer.tile(rows, columns))

    with tqdm(desc=path.name, unit="tile", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        try:
            pyramid.write(
                path, renderer.height, renderer.width, tile, progress=progress, fingerprint=renderer.fingerprint()
            )
        except (ValueError, OSError) as error:
            raise CommandError(f"--out: {error}") from None


def _pixels(renderer: Renderer, name: str) -> np.ndarray:
    """The whole image, uint8 [H, W, 3], never more than a band of it in float32."""
    picture = np.empty((renderer.height, renderer.width, 3), np.uint8)
    with tqdm(total=renderer.height, desc=name, unit="row", leave=False, disable=None) as bar:
        for rows, columns in tiles(renderer.height, renderer.width, TILE):
            picture[rows, columns] = pictures.to_pixels(renderer.tile(rows, columns))
            bar.update((rows.stop - rows.start) * (columns.stop - columns.start) / renderer.width)
    return picture

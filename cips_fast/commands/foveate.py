"""Render a picture from few pixels, most of them near the gaze; the other pixels are interpolated.

    python -m cips_fast foveate runs/mine --size 1024 --gaze 0.3,-0.4 --budget 0.1 --out gaze.png --compare

writes gaze.png and gaze-mask.png, in which computed pixels are white. With --compare it also writes gaze-full.png and
prints the error: root mean square and PSNR in decibels, for all pixels, for those near the gaze (closer than one eighth
of the longer side) and for the rest. --progressive FOLDER also renders the whole image from coarse to fine and writes
a picture after each pass; no pass computes a pixel that an earlier one computed.
"""

import argparse
import contextlib
import time
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ..anytime import progressive
from ..command_line import OptionError, number, numbers
from ..files import pictures
from ..foveation import Foveated, cortical, foveate
from ..render import Renderer
from ._options import (
    add_latents,
    add_out,
    add_source,
    add_view,
    chosen_latents,
    open_generator,
    options_named,
    renderers_of,
)
from ._output import check_format, save_picture, say, writable

HELP = "picture from few pixels, most of them near the gaze"
LESS_MEMORY = ": use a smaller --size; the whole picture is held in memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_source(parser)
    add_latents(parser)
    add_view(parser)
    add_out(parser, "foveated.png", "picture to write")
    parser.add_argument(
        "--gaze",
        type=numbers(2),
        default=(0.0, 0.0),
        metavar="X,Y",
        help="point of the gaze, from -1,-1 (first pixel) to 1,1 (last pixel) (default: 0,0)",
    )
    parser.add_argument(
        "--budget",
        type=number(0, 1, above=True),
        default=0.1,
        help="share of the pixels to compute (default: %(default)s)",
    )
    parser.add_argument(
        "--falloff",
        type=number(0, 1000, above=True),
        default=0.115,
        metavar="R",
        help="distance from the gaze at which the resolution is halved, as a fraction of half the longer side "
        "(default: %(default)s, which is 2.3 degrees of a view 40 degrees wide)",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="comparison with the full picture, which is computed and written as well",
    )
    parser.add_argument(
        "--progressive",
        type=Path,
        metavar="FOLDER",
        help="folder for a picture after each pass from coarse to fine (default: none)",
    )


def run(args: argparse.Namespace) -> int:
    """Render a picture, write it, and print where it is and how good it is."""
    count = len(args.latents or args.seeds)
    if count != 1:
        raise OptionError(f"--{'latents' if args.latents else 'seeds'}: got {count} of them, must be one")
    generator = open_generator(args)
    renderer = renderers_of(args, generator, chosen_latents(args, generator))[0]
    check_format(args, args.out, renderer.height, renderer.width, in_memory=True)
    with writable(args.out, _beside(args.out, "mask"), _beside(args.out, "full")), _passes_writable(args):
        record = _write(args, renderer)
    say(record)
    return 0


def _passes_writable(args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """A context that raises OptionError, before anything is computed, if --progressive cannot be written."""
    if args.progressive is None:
        return contextlib.nullcontext()
    folder = args.progressive
    return writable(folder / "pass-0-every-64.png", option="--progressive", given=folder)


def _write(args: argparse.Namespace, renderer: Renderer) -> dict:
    """Render and write all pictures, and return the line to print about them."""
    foveated, seconds = _foveate(args, renderer)
    save_picture(args.out, _pixels(foveated.image))
    save_picture(_beside(args.out, "mask"), _pixels(foveated.evaluated[..., None].expand(-1, -1, 3) * 2.0 - 1))
    record = {"file": str(args.out), "pixels": int(foveated.evaluated.sum()), "of": foveated.evaluated.numel()}
    record["seconds"] = round(seconds, 3)
    full = _passes(renderer, args.progressive) if args.progressive else None
    if args.compare:
        full = renderer.image().permute(1, 2, 0) if full is None else full
        save_picture(_beside(args.out, "full"), _pixels(full))
        record |= {name: round(error, 6) for name, error in asdict(foveated.error(full)).items()}
    return record


def _foveate(args: argparse.Namespace, renderer: Renderer) -> tuple[Foveated, float]:
    """The foveated picture, and how many seconds it took."""
    started = time.perf_counter()
    with options_named(args):
        falloff = cortical(args.falloff)
        foveated = foveate(renderer.pixels, renderer.height, renderer.width, args.gaze, args.budget, falloff=falloff)
    return foveated, time.perf_counter() - started


def _passes(renderer: Renderer, folder: Path) -> Tensor:
    """Write the picture of each pass, print the time of each, and return the last picture, [H, W, 3]."""
    started = time.perf_counter()
    for index, one in enumerate(progressive(renderer.pixels, renderer.height, renderer.width)):
        seconds = round(time.perf_counter() - started, 3)
        path = folder / f"pass-{index}-every-{one.spacing}.png"
        save_picture(path, _pixels(one.image), "--progressive")
        say({"file": str(path), "pixels": one.evaluated, "of": one.total, "seconds": seconds})
    return one.image


def _beside(path: Path, name: str) -> Path:
    """`gaze-mask.png` for `gaze.jpg`. The format is lossless, because the picture is used for comparisons."""
    return path.with_name(f"{path.stem}-{name}.png")


def _pixels(rgb: Tensor):
    """Colours [H, W, 3] as uint8 pixels."""
    return pictures.to_pixels(rgb.permute(2, 0, 1))

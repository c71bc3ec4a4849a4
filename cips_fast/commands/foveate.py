"""Few pixels, most of them where one looks, and the others interpolated; or the whole image from coarse to fine.

    python -m cips_fast foveate runs/mine --size 1024 --gaze 0.3,-0.4 --budget 0.1 --out gaze.png --compare

writes gaze.png, gaze-mask.png (white: computed), with --compare also gaze-full.png, and prints how far the two are
apart: root mean square and PSNR in decibels, of all pixels, of those near the gaze (within a quarter of half the longer
side) and of the rest. --progressive FOLDER writes a picture for each pass from coarse to fine; none computes a pixel
again.
"""

import argparse
import contextlib
import time
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ..anytime import progressive
from ..command_line import number, numbers
from ..files import pictures
from ..foveation import Foveated, cortical, foveate
from ..render import Renderer
from ._options import (
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
from ._output import check_format

HELP = "few pixels, most of them where one looks; or an image from coarse to fine"
LESS_MEMORY = ": use a smaller --size; all of the picture is held in memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `foveate`."""
    add_source(parser)
    add_latents(parser)
    add_view(parser)
    add_out(parser, "foveated.png", "the picture")
    parser.add_argument(
        *("--gaze",), type=numbers(2), default=(0.0, 0.0), metavar="X,Y",
        help="where one looks, from -1,-1 (first pixel) to 1,1 (last pixel) (default: 0,0)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=number(0, 1, above=True), default=0.1, help="share of the pixels to compute (%(default)s)"
    )
    parser.add_argument(
        *("--falloff",), type=number(0, 1000, above=True), default=0.115, metavar="R",
        help="how far away resolution halves, in half the longer side (%(default)s: 2.3 of 40 degrees)",
    )  # fmt: skip
    parser.add_argument("--compare", action="store_true", help="compute the full picture too, and the error")
    parser.add_argument("--progressive", type=Path, metavar="FOLDER", help="write a picture a pass, coarse to fine")


def run(args: argparse.Namespace) -> int:
    """Render, and say where to, and how well."""
    count = len(args.latents or args.seeds)
    if count != 1:
        raise CommandError(f"--{'latents' if args.latents else 'seed'}: got {count} of them, must be one")
    generator = open_generator(args)
    renderer = renderers_of(args, generator, chosen_latents(args, generator))[0]
    check_format(args, args.out, renderer.height, renderer.width, in_memory=True)
    with writable(args.out, _beside(args.out, "mask"), _beside(args.out, "full")), _passes_writable(args):
        record = _write(args, renderer)
    say(record)
    return 0


def _passes_writable(args: argparse.Namespace) -> contextlib.AbstractContextManager:
    """Raise CommandError before anything is computed that cannot be written."""
    if args.progressive is None:
        return contextlib.nullcontext()
    folder = args.progressive
    return writable(folder / "pass-0-every-64.png", option="--progressive", given=folder)


def _write(args: argparse.Namespace, renderer: Renderer) -> dict:
    """Render and write all pictures; what there is to say about them."""
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
    """The picture, and the seconds that it took."""
    started = time.perf_counter()
    with options_named(args):
        falloff = cortical(args.falloff)
        foveated = foveate(renderer.pixels, renderer.height, renderer.width, args.gaze, args.budget, falloff=falloff)
    return foveated, time.perf_counter() - started


def _passes(renderer: Renderer, folder: Path) -> Tensor:
    """Write every pass, say when it was there, and return the last one, [H, W, 3]."""
    started = time.perf_counter()
    for index, one in enumerate(progressive(renderer.pixels, renderer.height, renderer.width)):
        seconds = round(time.perf_counter() - started, 3)
        path = folder / f"pass-{index}-every-{one.spacing}.png"
        save_picture(path, _pixels(one.image), "--progressive")
        say({"file": str(path), "pixels": one.evaluated, "of": one.total, "seconds": seconds})
    return one.image


def _beside(path: Path, name: str) -> Path:
    """`gaze-mask.png` for `gaze.jpg`: what a picture is compared with is lossless."""
    return path.with_name(f"{path.stem}-{name}.png")


def _pixels(rgb: Tensor):
    """Colours [H, W, 3] as uint8."""
    return pictures.to_pixels(rgb.permute(2, 0, 1))

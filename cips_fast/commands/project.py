"""Inversion: find the latent whose image is closest to a picture, to a part of it, or to a few of its pixels.

The picture's centre is cut to the shape of the generator's images and reduced to --size. The folder of --out receives
projected.png (the picture, what of it was known, what was found), w.safetensors (the tensor `w`, for --latents of other
commands), and losses.jsonl (a line a step). Ctrl-C ends it early, and keeps what was found by then.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ..checkpoint import write_tensors
from ..command_line import number, whole_number
from ..console import complain
from ..files import pictures
from ..files.atomic import write_whole
from ..files.images import open_rgb
from ..generator import CIPSGenerator
from ..inversion import LARGEST_SEED, SPACES, Projection, Stopped, project
from ._options import (
    CommandError,
    add_out,
    add_region,
    add_source,
    native_size,
    not_written,
    open_generator,
    options_named,
    parse_size,
    say,
    writable,
)

HELP = "the latent whose image is closest to a picture, whole or masked"
PIXELS = 4096
MOST_COMPARED = 1 << 26  # pixels, whose colours and coordinates are held in memory
LARGEST_WEIGHT = 1e6
MOST_STEPS = 10_000_000
LARGEST = 256  # a side of the pixels that are compared, unless --size says otherwise
LESS_MEMORY = ": use a smaller --size, or fewer --pixels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `project`."""
    add_source(parser)
    parser.add_argument("image", type=Path, help="the picture")
    parser.add_argument("--mask", type=Path, help="a picture of the same size: white where the picture is known")
    parser.add_argument(
        *("--space",), choices=SPACES, default="w",
        help="w, one latent for all layers, or w+, one a layer, which fits closer and strays farther (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        *("--size",), type=parse_size, metavar="WxH",
        help=f"pixels that are compared (default: the generator's own, at most {LARGEST} a side)",
    )  # fmt: skip
    add_region(parser, "where the picture lies")
    parser.add_argument(
        *("--known",), type=number(0, 1, above=True), default=1.0, metavar="SHARE",
        help="share of the known pixels that is looked at, chosen at random once (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        *("--pixels",), default=PIXELS,
        type=whole_number(0, MOST_COMPARED, rule=f"must be at least 1 and at most {MOST_COMPARED}, or 0 for all"),
        help="known pixels that a step looks at, chosen again for each; 0 for all (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--steps", type=whole_number(1, MOST_STEPS), default=300, help="(%(default)s)")
    parser.add_argument("--learning-rate", type=number(0, 1e30, above=True), default=0.2, help="(%(default)s)")
    parser.add_argument(
        *("--perceptual",), type=number(0, LARGEST_WEIGHT), default=0.0,
        help="weight of the perceptual distance, such as 0.1 (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        *("--prior",), type=number(0, LARGEST_WEIGHT), default=1e-4,
        help="weight that pulls towards what was trained (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="of all that is random (%(default)s)"
    )
    add_out(parser, "projected", "a folder")


def run(args: argparse.Namespace) -> int:
    """Invert a picture, and say how close it came."""
    generator = open_generator(args)
    width, height = args.size or _default_size(generator)
    if width * height > MOST_COMPARED:
        raise CommandError(f"--size: got {width}x{height}, must be at most {MOST_COMPARED} pixels in all")
    target, known = read_target(args.image, args.mask, width, height)
    known = thinned(known, args.known, args.seed)
    began = time.perf_counter()
    files = [args.out / name for name in ("projected.png", "w.safetensors", "losses.jsonl")]
    with writable(*files, given=args.out):
        projection, stopped = _project(args, generator, target, known)
        seconds = time.perf_counter() - began
        found = projection.render(height, width, args.region).cpu()
        try:
            _write(args, projection, target, known, found)
        except OSError as error:
            raise not_written(args.out, error) from None
    hidden = {"psnr_hidden": psnr(found, target, ~known)} if not known.all() else {}
    say({"folder": str(args.out), "psnr": psnr(found, target, known), **hidden, "seconds": round(seconds, 1)})
    if stopped:
        complain(f"stopped: after {len(projection.losses)} of {args.steps} steps, whose result is in {args.out}")
        raise stopped
    return 0


def read_target(image: Path, mask: Path | None, width: int, height: int) -> tuple[Tensor, Tensor]:
    """A picture's centre, float32 [3, height, width] in [-1, 1], and where it is known, bool [height, width].

    A pixel is the mean of those that it covers, and is known where all of these are.

    Raises:
        CommandError: a file that is no picture, a mask of another size, or one without a known pixel.
    """
    picture = _open("image", image)
    whites = Image.new("L", picture.size, 255)
    if mask is not None:
        whites = _open("--mask", mask).convert("L").point(lambda value: 255 * (value > 127))
    if whites.size != picture.size:
        sizes = ["x".join(map(str, one.size)) for one in (whites, picture)]
        raise CommandError(f"--mask: got {str(mask)!r} of {sizes[0]} pixels, must have the image's {sizes[1]}")
    picture, whites = (
        np.asarray(ImageOps.fit(one, (width, height), Image.Resampling.BOX)) for one in (picture, whites)
    )
    if not (whites == 255).any():
        raise CommandError(f"--mask: got {str(mask)!r}, which leaves no known pixel at {width}x{height}")
    target = torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
    return target.contiguous(), torch.from_numpy(whites == 255)


def thinned(known: Tensor, share: float, seed: int) -> Tensor:
    """A share of the known pixels, at least one, chosen at random: bool [height, width]."""
    if not 0 < share <= 1:
        raise CommandError(f"--known: got {share}, must be more than 0 and at most 1")
    places = known.flatten().nonzero()[:, 0]
    kept = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    kept = kept[: max(1, round(share * len(places)))]
    thin = torch.zeros_like(known)
    thin.view(-1)[places[kept]] = True
    return thin


def psnr(found: Tensor, target: Tensor, where: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, of pixels as they are written, float [3, H, W] each, at bool [H, W]."""
    pixels = [pictures.to_pixels(each)[where.numpy()].astype(np.float64) for each in (found, target)]
    return round(10 * math.log10(255**2 / max(np.square(pixels[0] - pixels[1]).mean(), 1e-10)), 2)


def _open(name: str, path: Path) -> Image.Image:
    """A picture as RGB, read as training data are."""
    try:
        return open_rgb(path)
    except ValueError as error:
        raise CommandError(f"{name}: got {str(path)!r}, which cannot be read as a picture ({error})") from None


def _default_size(generator: CIPSGenerator) -> tuple[int, int]:
    width, height = native_size(generator)
    shrunk = max(1.0, max(width, height) / LARGEST)
    return round(width / shrunk), round(height / shrunk)


def _project(
    args: argparse.Namespace, generator: CIPSGenerator, target: Tensor, known: Tensor
) -> tuple[Projection, KeyboardInterrupt | None]:
    """The projection that the arguments ask for, and what interrupted it."""
    with tqdm(total=args.steps, unit="step", desc=args.image.name, disable=None) as bar:

        def progress(losses: dict[str, float]) -> None:
            bar.set_postfix(error=f"{losses['pixel']:.2g}", refresh=False)
            bar.update()

        try:
            with options_named(args):
                projection = project(
                    generator, target, mask=known, region=args.region, space=args.space, steps=args.steps,
                    learning_rate=args.learning_rate, pixels_per_step=args.pixels or None, perceptual=args.perceptual,
                    prior=args.prior, seed=args.seed, callback=progress,
                )  # fmt: skip
            return projection, None
        except Stopped as stopped:
            return stopped.projection, stopped.__cause__
        except ImportError as error:
            raise CommandError(f"--perceptual: {error}") from None
        except FloatingPointError as error:
            if str(error) == pictures.NOT_FINITE:
                raise
            reason = str(error).replace("lower learning_rate", "lower it")
            raise CommandError(f"--learning-rate: {reason}") from None


def _write(args: argparse.Namespace, projection: Projection, target: Tensor, known: Tensor, found: Tensor) -> None:
    """The picture of before and after, the latent, and the losses."""
    before = pictures.to_pixels(target)
    masked = np.where(known.numpy()[..., None], before, np.uint8(0))
    pictures.save(args.out / "projected.png", pictures.sheet([before, masked, pictures.to_pixels(found)], 3))
    about = {"source": str(args.source), "space": args.space}
    write_tensors(args.out / "w.safetensors", {"w": projection.w.cpu().contiguous()}, about)
    lines = "".join(f"{json.dumps(entry)}\n" for entry in projection.losses)
    write_whole(args.out / "losses.jsonl", lines.encode())

"""Find the latent whose image is closest to a picture, to a part of it, or to a few of its pixels (inversion).

The picture's centre is cut to the shape of the generator's images and reduced to --size. The folder --out receives
projected.png (the picture, its known pixels, and the image that was found), w.safetensors (the tensor `w`, for the
option --latents of other commands), and losses.jsonl (a line for each step). Ctrl-C ends the search early; the command
then writes what it found so far.
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
from ..command_line import OptionError, number, whole_number
from ..console import complain
from ..files import pictures
from ..files.atomic import write_whole
from ..files.images import open_rgb
from ..generator import CIPSGenerator
from ..inversion import LARGEST_SEED, SPACES, Diverged, Projection, Stopped, project
from ._options import (
    add_out,
    add_region,
    add_source,
    native_size,
    open_generator,
    options_named,
    parse_size,
)
from ._output import not_written, say, writable

HELP = "latent whose image is closest to a picture, whole or masked"
PIXELS_PER_STEP = 4096
MAX_COMPARED_PIXELS = 1 << 26  # their colours and coordinates are held in memory
MAX_WEIGHT = 1e6
MAX_STEPS = 10_000_000
DEFAULT_SIDE_PIXELS = 256  # the longer side of the compared picture is at most this, unless --size is given
LESS_MEMORY = ": use a smaller --size, or fewer --pixels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_source(parser)
    parser.add_argument("image", type=Path, help="picture to find the latent of")
    parser.add_argument(
        "--mask",
        type=Path,
        help="picture of the same size that is white where the image is known (default: all of it)",
    )
    parser.add_argument(
        "--space",
        choices=SPACES,
        default="w",
        help="kind of latent: w is one for all layers; w+ is one for each layer, whose image is closer to the picture, "
        "but less like the images of training (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="WxH",
        help="size in pixels at which picture and image are compared "
        f"(default: the generator's own, reduced to at most {DEFAULT_SIDE_PIXELS} a side)",
    )
    add_region(parser, "region of the image that is compared with the picture")
    parser.add_argument(
        "--known",
        type=number(0, 1, above=True),
        default=1.0,
        metavar="SHARE",
        help="share of the known pixels to use, drawn at random once (default: %(default)s)",
    )
    parser.add_argument(
        "--pixels",
        default=PIXELS_PER_STEP,
        type=whole_number(
            0, MAX_COMPARED_PIXELS, rule=f"must be at least 1 and at most {MAX_COMPARED_PIXELS}, or 0 for all"
        ),
        help="number of known pixels in a step, drawn at random for each step; 0 for all (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=whole_number(1, MAX_STEPS), default=300, help="number of steps (default: %(default)s)"
    )
    parser.add_argument(
        "--learning-rate",
        type=number(0, 1e30, above=True),
        default=0.2,
        help="learning rate of the steps (default: %(default)s)",
    )
    parser.add_argument(
        "--perceptual",
        type=number(0, MAX_WEIGHT),
        default=0.0,
        help="weight of the perceptual distance in the loss, such as 0.1 (default: %(default)s)",
    )
    parser.add_argument(
        "--prior",
        type=number(0, MAX_WEIGHT),
        default=1e-4,
        help="weight of the loss term that keeps the latent close to those of training (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=whole_number(0, LARGEST_SEED), default=0, help="seed of all random draws (default: %(default)s)"
    )
    add_out(parser, "projected", "folder to write into")


def run(args: argparse.Namespace) -> int:
    """Find the latent of a picture, write what was found, and print how close the image is."""
    generator = open_generator(args)
    width, height = args.size or _default_size(generator)
    if width * height > MAX_COMPARED_PIXELS:
        raise OptionError(f"--size: got {width}x{height}, must be at most {MAX_COMPARED_PIXELS} pixels in all")
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
        done = f"{len(projection.losses)} of {args.steps} steps"
        complain(f"stopped: {done} are done, their result is in {args.out}")
        raise stopped
    return 0


def read_target(image: Path, mask: Path | None, width: int, height: int) -> tuple[Tensor, Tensor]:
    """The centre of a picture, float32 [3, height, width] in [-1, 1], and its known pixels, bool [height, width].

    A pixel is the mean of the picture's pixels that it covers, and is known if all of them are known.

    Raises:
        OptionError: a file is not a picture, or the mask has another size or leaves no known pixel.
    """
    picture = _open("image", image)
    whites = Image.new("L", picture.size, 255)
    if mask is not None:
        whites = _open("--mask", mask).convert("L").point(lambda value: 255 * (value > 127))
    if whites.size != picture.size:
        sizes = ["x".join(map(str, one.size)) for one in (whites, picture)]
        raise OptionError(f"--mask: got {str(mask)!r} of {sizes[0]} pixels, must have the image's {sizes[1]}")
    picture, whites = (
        np.asarray(ImageOps.fit(one, (width, height), Image.Resampling.BOX)) for one in (picture, whites)
    )
    if not (whites == 255).any():
        raise OptionError(f"--mask: got {str(mask)!r}, which leaves no known pixel at {width}x{height}")
    target = torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
    return target.contiguous(), torch.from_numpy(whites == 255)


def thinned(known: Tensor, share: float, seed: int) -> Tensor:
    """A share of the known pixels, at least one, which are drawn at random: bool [height, width]."""
    if not 0 < share <= 1:
        raise OptionError(f"--known: got {share}, must be more than 0 and at most 1")
    pixels = known.flatten().nonzero()[:, 0]
    kept = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    kept = kept[: max(1, round(share * len(pixels)))]
    thin = torch.zeros_like(known)
    thin.view(-1)[pixels[kept]] = True
    return thin


def psnr(found: Tensor, target: Tensor, where: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two images, float [3, H, W], after rounding to bytes.

    Only the pixels are compared for which `where`, bool [H, W], is true.
    """
    pixels = [pictures.to_pixels(each)[where.numpy()].astype(np.float64) for each in (found, target)]
    return round(10 * math.log10(255**2 / max(np.square(pixels[0] - pixels[1]).mean(), 1e-10)), 2)


def _open(name: str, path: Path) -> Image.Image:
    """A picture as RGB, read as training data are."""
    try:
        return open_rgb(path)
    except ValueError as error:
        raise OptionError(f"{name}: got {str(path)!r}, which cannot be read as a picture ({error})") from None


def _default_size(generator: CIPSGenerator) -> tuple[int, int]:
    width, height = native_size(generator)
    shrunk = max(1.0, max(width, height) / DEFAULT_SIDE_PIXELS)
    return round(width / shrunk), round(height / shrunk)


def _project(
    args: argparse.Namespace, generator: CIPSGenerator, target: Tensor, known: Tensor
) -> tuple[Projection, KeyboardInterrupt | None]:
    """The projection that the options ask for, and the interrupt that ended it early, if any."""
    with tqdm(total=args.steps, unit="step", desc=args.image.name, disable=None) as bar:

        def progress(losses: dict[str, float]) -> None:
            bar.set_postfix(error=f"{losses['pixel']:.2g}", refresh=False)
            bar.update()

        try:
            with options_named(args):
                projection = project(
                    generator,
                    target,
                    mask=known,
                    region=args.region,
                    space=args.space,
                    steps=args.steps,
                    learning_rate=args.learning_rate,
                    pixels_per_step=args.pixels or None,
                    perceptual=args.perceptual,
                    prior=args.prior,
                    seed=args.seed,
                    callback=progress,
                )
            return projection, None
        except Stopped as stopped:
            return stopped.projection, stopped.__cause__
        except ImportError as error:
            raise OptionError(f"--perceptual: {error}") from None
        except Diverged as error:
            raise OptionError(f"--learning-rate: {error.loss}, must be lower than {args.learning_rate:g}") from None


def _write(args: argparse.Namespace, projection: Projection, target: Tensor, known: Tensor, found: Tensor) -> None:
    """Write the picture before and after, the latent, and the losses."""
    before = pictures.to_pixels(target)
    masked = np.where(known.numpy()[..., None], before, np.uint8(0))
    pictures.save(args.out / "projected.png", pictures.sheet([before, masked, pictures.to_pixels(found)], 3))
    about = {"source": str(args.source), "space": args.space}
    write_tensors(args.out / "w.safetensors", {"w": projection.w.cpu().contiguous()}, about)
    lines = "".join(f"{json.dumps(entry)}\n" for entry in projection.losses)
    write_whole(args.out / "losses.jsonl", lines.encode())

"""Inversion: find the latent whose image is closest to a picture, to a part of it, or to a few of its pixels.

The picture's centre is cut to the shape of the generator's images and reduced to --size. The folder of --out receives
projected.png (the picture, what of it was known, what was found), w.safetensors (the tensor `w`, for --latents of other
commands), and losses.jsonl (a line a step).
"""

import argparse
import json
import math
import stat
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from .. import pictures
from ..checkpoint import write_tensors
from ..generator import CIPSGenerator
from ..images import FORMATS, UNREADABLE, read_rgb, reason_of
from ..inversion import SPACES, Projection, project
from .common import (
    CommandError,
    add_out,
    add_region,
    add_source,
    check_writable,
    native_size,
    open_generator,
    parse_size,
    say,
)

HELP = "the latent whose image is closest to a picture, whole or masked"
PIXELS = 4096
LARGEST = 256  # a side of the pixels that are compared, unless --size says otherwise
# What the library calls otherwise.
FLAGS = {"target": "--size", "learning_rate": "--learning-rate"}


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
        *("--known",), type=float, default=1.0, metavar="SHARE",
        help="of the known pixels only so many are looked at, chosen at random once (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        *("--pixels",), type=int, default=PIXELS,
        help="known pixels that a step looks at, chosen anew; 0 for all (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=300, help="(%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=0.2, help="(%(default)s)")
    parser.add_argument(
        "--perceptual", type=float, default=0.0, help="weight of the perceptual distance, such as 0.1 (%(default)s)"
    )
    parser.add_argument(
        "--prior", type=float, default=1e-4, help="weight that pulls towards what was trained (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (%(default)s)")
    add_out(parser, "projected", "a folder")


def run(args: argparse.Namespace) -> int:
    """Invert a picture, and say how close it came."""
    if args.pixels < 0:
        raise CommandError(f"--pixels: got {args.pixels}, must be at least 1, or 0 for all")
    generator = open_generator(args)
    width, height = args.size or _default_size(generator)
    target, known = read_target(args.image, args.mask, width, height)
    known = thinned(known, args.known, args.seed)
    check_writable(args.out / "losses.jsonl")
    began = time.perf_counter()
    try:
        projection = _project(args, generator, target, known)
        seconds = time.perf_counter() - began
        found = projection.render(height, width, args.region).cpu()
        _write(args, projection, target, known, found)
    except OSError as error:
        raise CommandError(f"--out: got {str(args.out)!r}, which cannot be written ({error})") from None
    hidden = {"psnr_hidden": psnr(found, target, ~known)} if not known.all() else {}
    say({"folder": str(args.out), "psnr": psnr(found, target, known), **hidden, "seconds": round(seconds, 1)})
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
    """A picture as RGB, read as training data are; see `images.read_rgb`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block whoever opens it
            raise OSError("it is not a file")
        with open(path, "rb") as file:
            return read_rgb(file)
    except UnidentifiedImageError:
        reason = f"it is none of {', '.join(FORMATS)}"
    except UNREADABLE as error:
        reason = reason_of(error)
    raise CommandError(f"{name}: got {str(path)!r}, which cannot be read as a picture ({reason})")


def _default_size(generator: CIPSGenerator) -> tuple[int, int]:
    width, height = native_size(generator)
    shrunk = max(1.0, max(width, height) / LARGEST)
    return round(width / shrunk), round(height / shrunk)


def _project(args: argparse.Namespace, generator: CIPSGenerator, target: Tensor, known: Tensor) -> Projection:
    """The projection, its losses written as they come."""
    with (
        open(args.out / "losses.jsonl", "w") as file,
        tqdm(total=args.steps, unit="step", desc=args.image.name, disable=None) as bar,
    ):

        def progress(losses: dict[str, float]) -> None:
            print(json.dumps(losses), file=file, flush=True)
            bar.set_postfix(error=f"{losses['pixel']:.2g}", refresh=False)
            bar.update()

        try:
            return project(
                generator, target, mask=known, region=args.region, space=args.space, steps=args.steps,
                learning_rate=args.learning_rate, pixels_per_step=args.pixels or None, perceptual=args.perceptual,
                prior=args.prior, seed=args.seed, callback=progress,
            )  # fmt: skip
        except ValueError as error:
            name, _, reason = str(error).partition(":")
            raise CommandError(f"{FLAGS.get(name, f'--{name}')}:{reason}") from None
        except (ImportError, FloatingPointError) as error:
            flag = "--perceptual" if isinstance(error, ImportError) else "--learning-rate"
            raise CommandError(f"{flag}: {error}") from None


def _write(args: argparse.Namespace, projection: Projection, target: Tensor, known: Tensor, found: Tensor) -> None:
    """The picture of before and after, and the latent."""
    before = pictures.to_pixels(target)
    masked = np.where(known.numpy()[..., None], before, np.uint8(0))
    pictures.save(args.out / "projected.png", pictures.sheet([before, masked, pictures.to_pixels(found)], 3))
    write_tensors(
        args.out / "w.safetensors",
        {"w": projection.w.cpu().contiguous()},
        metadata={"source": str(args.source), "space": args.space},
    )

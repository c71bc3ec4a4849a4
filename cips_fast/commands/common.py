"""What all commands share: where the generator comes from, which latents, and what bad input is answered with."""

import argparse
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import pictures
from ..checkpoint import not_finite, read_tensors
from ..generator import ACTIVATIONS, CIPSGenerator
from ..grids import WHOLE
from ..loading import load
from ..render import Renderer, with_bicubic_embedding
from ..sampling import latents

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class CommandError(ValueError):
    """Something that the user can mend; shown as one line, and the command ends with status 2."""


def add_source(parser: argparse.ArgumentParser) -> None:
    """Arguments `source`, `--activation`, `--integer-coords` and `--device`, for `open_generator`."""
    parser.add_argument(
        "source", type=Path, help="a run folder, a checkpoint of ours (.safetensors) or a published one (.pt)"
    )
    parser.add_argument(
        "--activation", choices=ACTIVATIONS, help="of a published checkpoint with sines, which no shape tells"
    )
    parser.add_argument(
        "--integer-coords", action="store_true", help="a published checkpoint's grid is counted in pixels"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1 … (%(default)s)"
    )


def add_seeds(parser: argparse.ArgumentParser, default: str = "0") -> None:
    """Arguments `--seeds` and `--truncation`, for `style_latents`."""
    parser.add_argument(
        *("--seeds", "--seed"), type=parse_seeds, default=parse_seeds(default), metavar="N-M,K",
        help=f"latents, one a seed: numbers and ranges (default: {default})",
    )  # fmt: skip
    parser.add_argument(
        "--truncation", type=float, default=1.0, help="0 for the mean image … 1 for all that was learned (%(default)s)"
    )


def add_latents(parser: argparse.ArgumentParser, default: str = "0") -> None:
    """Arguments `--latents`, and those of `add_seeds`, for `chosen_latents`."""
    add_seeds(parser, default)
    parser.add_argument(
        *("--latents",), type=Path, nargs="+", default=[], metavar="FILE",
        help="latents that `project` found, in place of seeds",
    )  # fmt: skip


def add_view(parser: argparse.ArgumentParser) -> None:
    """Arguments `--size`, `--region`, `--embedding` and `--precision`, for `renderers_of`."""
    parser.add_argument("--size", type=parse_size, metavar="WxH", help="pixels (default: the generator's own)")
    add_region(parser, "what is shown")
    parser.add_argument(
        *("--embedding",), choices=("bilinear", "bicubic"), default="bilinear",
        help="how the embedding is read between its cells; bilinear as in training (%(default)s)",
    )  # fmt: skip
    add_precision(parser)


def add_region(parser: argparse.ArgumentParser, what: str) -> None:
    """Argument `--region`."""
    parser.add_argument(
        *("--region",), type=parse_numbers(4), default=WHOLE, metavar="X0,Y0,X1,Y1",
        help=f"{what}; -1,-1,1,1 is what was trained. Write --region=… where it begins with a minus",
    )  # fmt: skip


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Argument `--precision`, a key of `PRECISIONS`."""
    parser.add_argument(
        *("--precision",), choices=tuple(PRECISIONS), default="fp32",
        help="of the layers: fp32 is exact, bf16 and fp16 may be faster (%(default)s)",
    )  # fmt: skip


def renderers_of(args: argparse.Namespace, generator: CIPSGenerator, latents: Iterable[Tensor]) -> list[Renderer]:
    """What the arguments of `add_view` ask for, of latents [S] or [num_layers, S]."""
    width, height = args.size or native_size(generator)
    if args.embedding == "bicubic":
        magnified = 2 / abs(args.region[3] - args.region[1]) if args.region[3] != args.region[1] else 1
        cells = generator.encoding.embedding.shape[0]
        generator = with_bicubic_embedding(generator, max(1, math.ceil(height * magnified / cells)))
    try:
        dtype = PRECISIONS[args.precision]
        return [Renderer(generator, w, height, width, args.region, dtype=dtype) for w in latents]
    except ValueError as error:
        raise CommandError(f"--{error}") from None


def native_size(generator: CIPSGenerator) -> tuple[int, int]:
    """(width, height)."""
    height, width, _ = generator.native_grid().shape
    return width, height


def add_out(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """Argument `--out`."""
    parser.add_argument("--out", type=Path, default=Path(default), help=f"{what} (default: {default})")


def parse_seeds(text: str) -> list[int]:
    """`0-3,7` as [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise argparse.ArgumentTypeError(f"got {text!r}, must be numbers and ranges such as 0-3,7")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def parse_size(text: str) -> tuple[int, int]:
    """`640x480`, or `512` for a square, as (width, height)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"got {text!r}, must be WIDTHxHEIGHT, both at least 1, such as 640x480")
    return int(parts[0]), int(parts[-1])


def parse_numbers(count: int):
    """A reader of so many numbers with commas between them."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(abs(number) < float("inf") for number in numbers):
            raise argparse.ArgumentTypeError(f"got {text!r}, must be {count} numbers with commas between them")
        return numbers

    return parse


def open_generator(args: argparse.Namespace) -> CIPSGenerator:
    """The generator that the arguments of `add_source` name, in eval mode, on its device.

    Raises:
        CommandError: there is none, it cannot be used, or the device does not exist.
    """
    told = {"activation": args.activation, "integer_coords": args.integer_coords, "device": args.device}
    try:
        return load(args.source, **told).requires_grad_(False)
    except (OSError, ValueError) as error:
        name, _, reason = str(error).partition(": ")
        option = f"--{name.replace('_', '-')}: " if name in told else "source: "
        raise CommandError(option + (reason if name in (*told, "source", "checkpoint") else str(error))) from None


@torch.no_grad()
def style_latents(generator: CIPSGenerator, seeds: Sequence[int], truncation: float = 1.0) -> Tensor:
    """w of the seeds' latents: [N, S], the same on every device up to rounding."""
    return generator.truncate(generator.mapping(latents(seeds, generator)), truncation)


@torch.no_grad()
def chosen_latents(args: argparse.Namespace, generator: CIPSGenerator) -> Tensor:
    """w of the arguments of `add_latents`: [N, S], or [N, num_layers, S] where a file has one a layer.

    Raises:
        CommandError: a file that has no latent of this generator.
    """
    if not args.latents:
        return style_latents(generator, args.seeds, args.truncation)
    found = [_read_latent(path, generator) for path in args.latents]
    if len({w.dim() for w in found}) > 1:
        found = [w.expand(generator.num_layers, -1) for w in found]
    return generator.truncate(torch.stack(found).to(generator.mean_latent), args.truncation)


def _read_latent(path: Path, generator: CIPSGenerator) -> Tensor:
    """[S] or [num_layers, S]."""
    layers, features = generator.num_layers, generator.style_features
    try:
        w = read_tensors(path)[0].get("w")
    except OSError as error:
        raise CommandError(f"--latents: {str(error).removeprefix('checkpoint: ')}") from None
    except ValueError as error:
        reason = str(error).removeprefix(f"checkpoint: {str(path)!r} ")
        raise CommandError(f"--latents: got {str(path)!r}, which is not what `project` writes: it {reason}") from None
    if w is None:
        raise CommandError(f"--latents: got {str(path)!r}, which is not what `project` writes: it has no tensor 'w'")
    if tuple(w.shape) not in ((1, features), (1, layers, features)):
        raise CommandError(
            f"--latents: got {list(w.shape)} in {str(path)!r}, must be {[1, features]} or {[1, layers, features]}: "
            "another generator's?"
        )
    if not w.is_floating_point():
        raise CommandError(f"--latents: got {w.dtype} in {str(path)!r}, must be a floating tensor")
    if reason := not_finite({"w": w}):
        raise CommandError(f"--latents: got {str(path)!r}, where {reason}")
    return w[0]


def check_writable(path: Path) -> None:
    """Raise CommandError unless a file can be made there; folders on the way are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CommandError(f"--out: got {str(path)!r}, which cannot be written ({error.strerror})") from None


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """Write a picture uint8 [H, W, 3] in the format that its ending names."""
    try:
        pictures.save(path, pixels)
    except (ValueError, OSError) as error:
        raise CommandError(f"--out: {path.name!r} could not be written ({error})") from None


def say(record: dict) -> None:
    """One line of JSON on standard output."""
    print(json.dumps(record), flush=True)

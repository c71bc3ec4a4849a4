"""Options that the commands share, and the generators and latents that they ask for."""

import argparse
import contextlib
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import not_finite, read_tensors
from ..checks import shown
from ..command_line import OptionError, named_after_options, number, numbers, option_of
from ..files import pictures
from ..files.untrusted import CheckpointError
from ..generator import ACTIVATIONS, CIPSGenerator
from ..grids import WHOLE
from ..hardware import PRECISIONS
from ..inversion import LARGEST_SEED
from ..loading import load
from ..render import Renderer, with_bicubic_embedding
from ..sampling import latents

MAX_SEEDS = 1_000_000
MAX_SIDE_PIXELS = 1 << 24  # the coordinates of a side are held in memory
MAX_COORDINATE = 1e6  # training uses coordinates from -1 to 1
MAX_TRUNCATION = 100.0
# The options that set arguments of the library under another name.
OPTION_OF = {
    "generator": "source",
    "path": "out",
    "w": "seeds",
    "z": "seeds",
    "keys": "seeds",
    "latents": "seeds",
    "height": "size",
    "width": "size",
    "target": "size",
    "start": "region",
    "half_resolution": "falloff",
    "pixels_per_step": "pixels",
    "frames": "seconds",
    "w_rows": "seeds",
    "w_columns": "mix",
}
POSITIONAL = ("source", "image")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add `source`, `--activation`, `--integer-coords` and `--device`, for `open_generator`."""
    parser.add_argument(
        "source", type=Path, help="run folder, checkpoint of cips_fast (.safetensors) or published checkpoint (.pt)"
    )
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        help="activation of a published checkpoint with sines, which its file does not name "
        "(default: the checkpoint's)",
    )
    parser.add_argument(
        "--integer-coords",
        action="store_true",
        help="coordinates that count pixels, for a published checkpoint that was trained with them "
        "(default: coordinates from -1 to 1)",
    )
    parser.add_argument(
        "--device",
        type=parse_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device that computes: cpu, cuda, cuda:1, ... (default: %(default)s)",
    )


def add_seeds(parser: argparse.ArgumentParser, default: str = "0", shown_default: str | None = None) -> None:
    """Add `--seeds` and `--truncation`, for `style_latents`.

    Args:
        default: the default seeds.
        shown_default: what the help line says about them, if it is not `default`.
    """
    parser.add_argument(
        "--seeds",
        "--seed",
        type=parse_seeds,
        default=parse_seeds(default),
        metavar="N-M,K",
        help=f"seeds of the latents, as numbers and ranges such as 0-3,7 (default: {shown_default or default})",
    )
    parser.add_argument(
        "--truncation",
        type=number(-MAX_TRUNCATION, MAX_TRUNCATION),
        default=1.0,
        help="variety of the images, from 0, the mean image, to 1, all that was learned (default: %(default)s)",
    )


def add_latents(parser: argparse.ArgumentParser, default: str = "0", shown_default: str | None = None) -> None:
    """Add `--latents` and the options of `add_seeds`, for `chosen_latents`."""
    add_seeds(parser, default, shown_default)
    parser.add_argument(
        "--latents",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="files of latents that `project` wrote, instead of seeds (default: none)",
    )


def add_view(parser: argparse.ArgumentParser) -> None:
    """Add `--size`, `--region`, `--embedding` and `--precision`, for `renderers_of`."""
    parser.add_argument(
        "--size", type=parse_size, metavar="WxH", help="size of a picture in pixels (default: the generator's own)"
    )
    add_region(parser, "region of the image that the picture shows")
    parser.add_argument(
        "--embedding",
        choices=("bilinear", "bicubic"),
        default="bilinear",
        help="interpolation between the cells of the embedding; training uses bilinear (default: %(default)s)",
    )
    add_precision(parser)


def add_region(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--region`; `purpose` is the first part of its help line."""
    parser.add_argument(
        "--region",
        type=numbers(4, MAX_COORDINATE),
        default=WHOLE,
        metavar="X0,Y0,X1,Y1",
        help=f"{purpose}, in coordinates (default: -1,-1,1,1, the region of training)",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add `--precision`, a key of `PRECISIONS`."""
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        default="fp32",
        help="precision of the layers: fp32 is exact, bf16 and fp16 may be faster (default: %(default)s)",
    )


def renderers_of(args: argparse.Namespace, generator: CIPSGenerator, latents: Iterable[Tensor]) -> list[Renderer]:
    """A renderer for each latent, [S] or [num_layers, S], as the options of `add_view` ask."""
    width, height = args.size or native_size(generator)
    generator = with_embedding(args, generator, height)
    with options_named(args):
        dtype = PRECISIONS[args.precision]
        return [Renderer(generator, w[None], height, width, args.region, dtype=dtype) for w in latents]


def with_embedding(
    args: argparse.Namespace, generator: CIPSGenerator, height: int, magnification: float = 1.0
) -> CIPSGenerator:
    """The generator with the embedding that `--embedding` asks for, fine enough for `--region`.

    Args:
        height: pixels of a picture.
        magnification: how many times closer than `--region` a camera comes.
    """
    extent = abs(args.region[3] - args.region[1])
    if args.embedding == "bilinear" or not extent:  # `Renderer` refuses a region without extent
        return generator
    cells = generator.encoding.embedding.shape[0]
    return with_bicubic_embedding(generator, max(1, math.ceil(height * (2 / extent * magnification) / cells)))


def options_named(args: argparse.Namespace, **options: str) -> contextlib.AbstractContextManager[None]:
    """Within the block, an error about an argument of the library becomes one about an option of the command.

    Args:
        args: the command's arguments; an error never names an option that is not among them.
        options: where an option is stored in `args`, by the library's name, beyond `OPTION_OF`.
    """
    return named_after_options(option_names(args, **options))


def option_names(args: argparse.Namespace, **options: str) -> dict[str, str]:
    """What an error names instead of an argument of the library; see `options_named`."""
    names = {}
    for name, stored in ({own: own for own in vars(args)} | OPTION_OF | options).items():
        if stored == "seeds" and getattr(args, "latents", None):
            stored = "latents"
        if hasattr(args, stored):
            names[name] = stored if stored in POSITIONAL else option_of(stored)
            if name in ("height", "width"):  # one option sets both
                names[name] += f": {name}"
    return names


def native_size(generator: CIPSGenerator) -> tuple[int, int]:
    """Width and height of the images that the generator was trained on."""
    height, width, _ = generator.native_grid().shape
    return width, height


def add_out(parser: argparse.ArgumentParser, default: str, purpose: str) -> None:
    """Add `--out`; `purpose` is the first part of its help line."""
    parser.add_argument("--out", type=Path, default=Path(default), help=f"{purpose} (default: {default})")


def parse_seeds(text: str) -> list[int]:
    """`0-3,7` as [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = (end.strip() for end in part.partition("-"))
        ends = [first, last] if dash else [first]
        values = [_whole(end, LARGEST_SEED) for end in ends]
        if all(end.isdecimal() for end in ends) and None in values:
            raise argparse.ArgumentTypeError(f"got {shown(text)}, must be from 0 to {LARGEST_SEED}")
        if None in values or values[-1] < values[0]:
            raise argparse.ArgumentTypeError(f"got {shown(text)}, must be numbers and ranges such as 0-3,7")
        if len(seeds) + values[-1] - values[0] + 1 > MAX_SEEDS:
            raise argparse.ArgumentTypeError(f"got {shown(text)}, must be at most {MAX_SEEDS} seeds")
        seeds += range(values[0], values[-1] + 1)
    return seeds


def parse_device(text: str) -> str:
    """A device's name, unchanged. The meta device, which holds no numbers, is refused.

    `open_generator` checks that the device exists.
    """
    if text.partition(":")[0] == "meta":
        raise argparse.ArgumentTypeError(f"got {shown(text)}, must be a device that computes, such as cpu or cuda")
    return text


def parse_size(text: str) -> tuple[int, int]:
    """`640x480`, or `512` for a square, as (width, height)."""
    parts = text.lower().split("x")
    sides = [_whole(part, MAX_SIDE_PIXELS) for part in parts]
    if len(parts) > 2 or not all(part.isdecimal() for part in parts) or 0 in sides:
        raise argparse.ArgumentTypeError(f"got {shown(text)}, must be WIDTHxHEIGHT, both at least 1, such as 640x480")
    if None in sides:
        raise argparse.ArgumentTypeError(f"got {shown(text)}, must be WIDTHxHEIGHT, both at most {MAX_SIDE_PIXELS}")
    return sides[0], sides[-1]


def _whole(text: str, most: int) -> int | None:
    """A whole number from 0 to `most`; None for any other text."""
    if not text.isdecimal() or len(text) > len(str(most)) or int(text) > most:
        return None
    return int(text)


def open_generator(args: argparse.Namespace) -> CIPSGenerator:
    """The generator that the options of `add_source` ask for, in eval mode, on its device.

    Raises:
        OptionError: the source has no usable generator, or the device does not exist.
    """
    names = {"source": "source", "checkpoint": "source", "device": "--device"}
    names |= {"activation": "--activation", "integer_coords": "--integer-coords"}
    try:
        with named_after_options(names):
            generator = load(
                args.source, activation=args.activation, integer_coords=args.integer_coords, device=args.device
            )
    except OptionError:
        raise
    except (OSError, ValueError) as error:
        raise OptionError(f"source: {getattr(error, 'reason', error)}") from None
    return generator.requires_grad_(False)


@torch.no_grad()
def style_latents(generator: CIPSGenerator, seeds: Sequence[int], truncation: float = 1.0) -> Tensor:
    """The style latents w of seeds, [N, S]; they are the same on every device up to rounding."""
    return generator.truncate(generator.mapping(latents(seeds, generator)), truncation)


@torch.no_grad()
def chosen_latents(args: argparse.Namespace, generator: CIPSGenerator) -> Tensor:
    """The style latents w that the options of `add_latents` ask for.

    Returns:
        [N, S], or [N, num_layers, S] if a file has one latent for each layer.

    Raises:
        OptionError: a file has no latent of this generator.
    """
    if not args.latents:
        return seeds_latents(args, generator, args.seeds)
    found = [_read_latent(path, generator) for path in args.latents]
    if len({w.dim() for w in found}) > 1:
        found = [w.expand(generator.num_layers, -1) for w in found]
    found = torch.stack(found).to(generator.mean_latent)
    if not bool(found.isfinite().all()):
        raise OptionError("--latents: got values that are not finite")
    with options_named(args):
        return generator.truncate(found, args.truncation)


def seeds_latents(args: argparse.Namespace, generator: CIPSGenerator, seeds: Sequence[int]) -> Tensor:
    """The style latents w of seeds, truncated by `--truncation`: [N, S].

    Raises:
        FloatingPointError: the mapping network's latents are not finite.
    """
    with options_named(args):
        w = style_latents(generator, seeds, args.truncation)
    if not bool(w.isfinite().all()):
        raise FloatingPointError(pictures.NOT_FINITE)
    return w


def _read_latent(path: Path, generator: CIPSGenerator) -> Tensor:
    """The latent in a file that `project` wrote, [S] or [num_layers, S]."""
    layers, features = generator.num_layers, generator.style_features
    try:
        w = read_tensors(path)[0].get("w")
    except CheckpointError as error:
        raise OptionError(
            f"--latents: got {str(path)!r}, which is not what `project` writes: it {error.fault}"
        ) from None
    except OSError as error:
        raise OptionError(f"--latents: {getattr(error, 'reason', error)}") from None
    if w is None:
        raise OptionError(f"--latents: got {str(path)!r}, which is not what `project` writes: it has no tensor 'w'")
    if tuple(w.shape) not in ((1, features), (1, layers, features)):
        raise OptionError(
            f"--latents: got {list(w.shape)} in {str(path)!r}, must be {[1, features]} or {[1, layers, features]}; "
            "it may be of another generator"
        )
    if not w.is_floating_point():
        raise OptionError(f"--latents: got {w.dtype} in {str(path)!r}, must be a floating tensor")
    if reason := not_finite({"w": w}):
        raise OptionError(f"--latents: got {str(path)!r}, where {reason}")
    return w[0]

"""What all commands share: where the generator comes from, which latents, and what bad input is answered with."""

import argparse
import contextlib
import errno
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import not_finite, read_tensors
from ..checks import shown
from ..command_line import number, numbers
from ..console import encodable, put
from ..files import pictures
from ..generator import ACTIVATIONS, CIPSGenerator
from ..grids import WHOLE
from ..inversion import LARGEST_SEED
from ..loading import load
from ..render import Renderer, with_bicubic_embedding
from ..sampling import latents

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_SEEDS = 1_000_000
LONGEST_SIDE = 1 << 24  # pixels; the coordinates of a side are held in memory
FARTHEST = 1e6  # coordinate; [-1, 1] was trained
LARGEST_TRUNCATION = 100.0
# Arguments of library functions that an option of another name sets.
OPTION_OF = {
    "path": "out", "w": "seeds", "z": "seeds", "keys": "seeds", "latents": "seeds", "height": "size", "width": "size",
    "target": "size", "start": "region", "half_resolution": "falloff", "pixels_per_step": "pixels", "frames": "seconds",
    "w_rows": "seeds", "w_columns": "mix",
}  # fmt: skip
POSITIONAL = ("source", "image")


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
        *("--device",), type=parse_device, default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (%(default)s)",
    )  # fmt: skip


def add_seeds(parser: argparse.ArgumentParser, default: str = "0") -> None:
    """Arguments `--seeds` and `--truncation`, for `style_latents`."""
    parser.add_argument(
        *("--seeds", "--seed"), type=parse_seeds, default=parse_seeds(default), metavar="N-M,K",
        help=f"latents, one a seed: numbers and ranges (default: {default})",
    )  # fmt: skip
    parser.add_argument(
        *("--truncation",), type=number(-LARGEST_TRUNCATION, LARGEST_TRUNCATION), default=1.0,
        help="from 0, the mean image, to 1, all that was learned (%(default)s)",
    )  # fmt: skip


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
        *("--region",), type=numbers(4, FARTHEST), default=WHOLE, metavar="X0,Y0,X1,Y1",
        help=f"{what}; -1,-1,1,1 is what was trained",
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


@contextlib.contextmanager
def options_named(args: argparse.Namespace, **options: str) -> Iterator[None]:
    """Within the block, the library's `ValueError: name: reason` becomes an error that names the option.

    Args:
        args: of the command, whose options are all that an error may name.
        options: the option's name by the library's, where `OPTION_OF` has another one or none.
    """
    try:
        yield
    except CommandError:
        raise
    except ValueError as error:
        raise CommandError(with_option(args, str(error), **options)) from None


def with_option(args: argparse.Namespace, message: str, **options: str) -> str:
    """The library's message `name: reason` with the option that set that argument, if there is one."""
    name, colon, reason = message.partition(": ")
    option = ({**OPTION_OF, **options}).get(name, name)
    if option == "seeds" and getattr(args, "latents", None):
        option = "latents"
    if not colon or not hasattr(args, option):
        return message
    if name in ("height", "width"):
        reason = f"{name}: {reason}"
    return f"{option if option in POSITIONAL else '--' + option.replace('_', '-')}: {reason}"


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
        first, dash, last = (end.strip() for end in part.partition("-"))
        ends = [first, last] if dash else [first]
        values = [_whole(end, LARGEST_SEED) for end in ends]
        if all(end.isdecimal() for end in ends) and None in values:
            raise argparse.ArgumentTypeError(f"got {shown(text)}, must be from 0 to {LARGEST_SEED}")
        if None in values or values[-1] < values[0]:
            raise argparse.ArgumentTypeError(f"got {shown(text)}, must be numbers and ranges such as 0-3,7")
        if len(seeds) + values[-1] - values[0] + 1 > MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"got {shown(text)}, must be at most {MOST_SEEDS} seeds")
        seeds += range(values[0], values[-1] + 1)
    return seeds


def parse_device(text: str) -> str:
    """A device's name as it is, unless the device holds no numbers; whether it exists is for `open_generator`."""
    if text.partition(":")[0] == "meta":
        raise argparse.ArgumentTypeError(f"got {shown(text)}, must be a device that computes, such as cpu or cuda")
    return text


def parse_size(text: str) -> tuple[int, int]:
    """`640x480`, or `512` for a square, as (width, height)."""
    parts = text.lower().split("x")
    sides = [_whole(part, LONGEST_SIDE) for part in parts]
    if len(parts) > 2 or not all(part.isdecimal() for part in parts) or 0 in sides:
        raise argparse.ArgumentTypeError(f"got {shown(text)}, must be WIDTHxHEIGHT, both at least 1, such as 640x480")
    if None in sides:
        raise argparse.ArgumentTypeError(f"got {shown(text)}, must be WIDTHxHEIGHT, both at most {LONGEST_SIDE}")
    return sides[0], sides[-1]


def _whole(text: str, most: int) -> int | None:
    """A whole number from 0 to `most`; None for any other text."""
    if not text.isdecimal() or len(text) > len(str(most)) or int(text) > most:
        return None
    return int(text)


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
        return seeds_latents(args, generator, args.seeds)
    found = [_read_latent(path, generator) for path in args.latents]
    if len({w.dim() for w in found}) > 1:
        found = [w.expand(generator.num_layers, -1) for w in found]
    found = torch.stack(found).to(generator.mean_latent)
    if not bool(found.isfinite().all()):
        raise CommandError("--latents: got values that are not finite")
    with options_named(args):
        return generator.truncate(found, args.truncation)


def seeds_latents(args: argparse.Namespace, generator: CIPSGenerator, seeds: Sequence[int]) -> Tensor:
    """w of seeds, truncated as the arguments say: [N, S].

    Raises:
        CommandError: the truncation is none.
        FloatingPointError: the network's latents are not finite.
    """
    with options_named(args):
        w = style_latents(generator, seeds, args.truncation)
    if not bool(w.isfinite().all()):
        raise FloatingPointError(pictures.NOT_FINITE)
    return w


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
    with writable(path):
        pass


@contextlib.contextmanager
def writable(path: Path, *others: Path, option: str = "--out", given: Path | None = None) -> Iterator[None]:
    """Within the block a file, and others in its folder, can be made; missing parent folders are made.

    If the block fails, the folders that were made for it are removed again where they are empty.

    Args:
        option, given: what an error names, and the path that it shows; the first file's unless given.

    Raises:
        CommandError: a file cannot be made there.
    """
    made: list[Path] = []
    with contextlib.ExitStack() as undo:
        undo.callback(_remove_empty, made)
        try:
            for folder in reversed(path.parents):
                if not folder.exists():
                    folder.mkdir(exist_ok=True)
                    made.append(folder)
            for one in (path, *others):
                _check_name(one)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except (OSError, ValueError) as error:  # ValueError: a NUL byte
            raise not_written(given or path, error, option) from None
        yield
        undo.pop_all()


def _check_name(path: Path) -> None:
    """Raise OSError where a folder is in the file's place, or its name is too long."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    with contextlib.suppress(FileNotFoundError):
        os.lstat(path)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in reversed(folders):
            folder.rmdir()


def not_written(path: Path, error: Exception, option: str = "--out") -> CommandError:
    """The error of a command that cannot write a file."""
    reason = getattr(error, "strerror", None) or str(error)
    return CommandError(f"{option}: got {str(path)!r}, which cannot be written ({reason})")


def save_picture(path: Path, pixels: np.ndarray, option: str = "--out") -> None:
    """Write a picture uint8 [H, W, 3] in the format that its ending names."""
    try:
        pictures.save(path, pixels)
    except (ValueError, OSError) as error:
        raise not_written(path, error, option) from None


def say(record: dict) -> None:
    """One line of JSON on standard output; numbers that are not finite are null, which JSON has."""
    record = {name: None if _is_not_finite(value) else value for name, value in record.items()}
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    put(line if encodable(line) else json.dumps(record))


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)

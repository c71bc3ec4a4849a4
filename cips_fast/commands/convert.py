"""Convert a generator to another file format, which the ending of --out selects:

  .safetensors  checkpoint of this library: parameters and configuration
  .pt           checkpoint with the names and shapes of the published code. Only generators that were loaded from
                published checkpoints can be written: those that this library trains read the embedding in another
                way (align_corners=True).
  .pt2          synthesis network as a torch.export program
  .onnx         synthesis network as an ONNX file; large weights are in a second file, NAME.onnx.data

The last two formats take any number of style latents w and of points, and return colours.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import checkpoint, export, published
from ..checks import ArgumentError
from ..command_line import OptionError
from ..files.atomic import move_into_place
from ..generator import CIPSGenerator
from ._options import add_source, open_generator
from ._output import check_writable, not_written, say

HELP = "conversion of a checkpoint: ours, published, ONNX or torch.export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_source(parser)
    parser.set_defaults(device="cpu")
    parser.add_argument("--out", type=Path, required=True, help="file to write; its ending selects the format")
    parser.add_argument(
        "--check",
        action="store_true",
        help="comparison of the written file with the generator; a file that differs is not kept",
    )
    parser.add_argument(
        "--per-layer",
        action="store_true",
        help="input w of a .pt2 or .onnx file with one latent for each layer, [B, L, S] (default: [B, S])",
    )
    parser.add_argument(
        "--coords-per-image",
        action="store_true",
        help="input coords of a .pt2 or .onnx file with points for each image, [B, P, 2] (default: [P, 2])",
    )
    parser.add_argument("--opset", type=int, help="operator set of an .onnx file (default: the one PyTorch writes)")


@dataclass(frozen=True)
class Form:
    """A file format: how a generator is written, how it is read back, and how much the images may differ."""

    write: Callable[[CIPSGenerator, Path, argparse.Namespace], None]
    read: Callable[[Path, CIPSGenerator], export.SynthesisFunction]
    tolerance: float


def run(args: argparse.Namespace) -> int:
    """Convert a generator; the exit status is 1 if --check finds a difference."""
    form = _form_of(args)
    check_writable(args.out)
    generator = open_generator(args)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=args.out.parent) as folder:
        file = Path(folder) / args.out.name
        try:
            form.write(generator, file, args)
            record = {"file": str(args.out), "bytes": sum(part.stat().st_size for part in Path(folder).iterdir())}
            if args.check:
                difference = export.largest_difference(generator, form.read(file, generator), **_inputs(args))
                close = difference <= form.tolerance  # false for NaN
                record |= {"check": "ok" if close else "differs", "largest_difference": difference}
        except (ValueError, ImportError) as error:
            raise _refused(args.out, error) from None
        except OSError as error:
            raise not_written(args.out, error) from None
        if record.get("check") == "differs":
            say(record | {"largest_allowed": form.tolerance, "written": False})
            return 1
        _hand_over(file, args.out)
    say(record)
    return 0


def _form_of(args: argparse.Namespace) -> Form:
    """The format that the ending of --out selects; OptionError if another option does not fit the format."""
    ending = args.out.suffix.lower()
    if ending not in FORMS:
        raise OptionError(f"--out: got {str(args.out)!r}, must end in one of {', '.join(FORMS)}")
    given = {"--per-layer": args.per_layer, "--coords-per-image": args.coords_per_image, "--opset": args.opset}
    for option, value in given.items():
        fitting = (".onnx",) if option == "--opset" else (".pt2", ".onnx")
        if value and ending not in fitting:
            endings = " or ".join(fitting)
            raise OptionError(f"{option}: needs an --out that ends in {endings}, got {args.out.name!r}")
    return FORMS[ending]


def _inputs(args: argparse.Namespace) -> dict[str, bool]:
    """The inputs that an exported network takes."""
    return {"per_layer": args.per_layer, "coords_per_image": args.coords_per_image}


def _hand_over(file: Path, out: Path) -> None:
    """Move the files of a folder to the folder of `out`: side files first, the main file last."""
    try:
        for part in sorted(file.parent.iterdir(), key=lambda part: part == file):
            move_into_place(part, out.parent / part.name)
    except OSError as error:
        raise not_written(out, error) from None


def _refused(out: Path, error: ValueError | ImportError) -> OptionError:
    """An error about the option that the library's error is about."""
    if isinstance(error, ArgumentError) and error.name == "opset":
        return OptionError(f"--opset: {error.reason}")
    if isinstance(error, ImportError):
        return OptionError(f"--out: {error}")
    return OptionError(f"--out: got {str(out)!r}, which cannot hold this generator ({error})")


def _write_program(generator: CIPSGenerator, file: Path, args: argparse.Namespace) -> None:
    content = io.BytesIO()  # on a full disk PyTorch's own writer ends the whole process
    torch.export.save(export.export_program(generator, **_inputs(args)), content)
    file.write_bytes(content.getbuffer())


def _write_onnx(generator: CIPSGenerator, file: Path, args: argparse.Namespace) -> None:
    export.export_onnx(generator, file, opset=args.opset, **_inputs(args))


def _read_published(file: Path, generator: CIPSGenerator) -> export.SynthesisFunction:
    told = {"activation": generator.activation, "integer_coords": generator.integer_coords}
    return published.load_published(file, **told).synthesis


FORMS = {
    ".safetensors": Form(
        lambda generator, file, args: checkpoint.save(generator, file),
        lambda file, generator: checkpoint.load(file).synthesis,
        tolerance=1e-6,
    ),
    ".pt": Form(
        lambda generator, file, args: published.save_published(generator, file), _read_published, tolerance=1e-6
    ),
    ".pt2": Form(_write_program, lambda file, generator: torch.export.load(file).module(), tolerance=1e-4),
    ".onnx": Form(_write_onnx, lambda file, generator: export.open_onnx(file), tolerance=1e-4),
}

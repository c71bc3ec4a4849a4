"""A generator in another form, by the ending of --out:

  .safetensors  this library's checkpoint: parameters and configuration
  .pt           names and shapes of the published code; only of networks that came from its checkpoints, since those
                that this library trains read the embedding otherwise (align_corners=True)
  .pt2          the synthesis network as a torch.export program
  .onnx         the synthesis network as an ONNX file, with its weights beside it in NAME.onnx.data if it is large

The last two take style latents w and a list of points, and give colours, for any number of both.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import checkpoint, export, published
from ..files.atomic import move_into_place
from ..generator import CIPSGenerator
from ._options import CommandError, add_source, check_writable, open_generator, say

HELP = "turn a checkpoint into ours, a published one, ONNX or torch.export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command."""
    add_source(parser)
    parser.set_defaults(device="cpu")
    parser.add_argument("--out", type=Path, required=True, help="file to write; its ending says what")
    parser.add_argument(
        "--check", action="store_true", help="read it back and compare; nothing is written if it differs"
    )
    parser.add_argument("--per-layer", action="store_true", help=".pt2, .onnx: w holds one latent a layer, [B, L, S]")
    parser.add_argument(
        "--coords-per-image", action="store_true", help=".pt2, .onnx: every image has its own points, [B, P, 2]"
    )
    parser.add_argument("--opset", type=int, help=".onnx: operator set (default: what PyTorch writes)")


@dataclass(frozen=True)
class Form:
    """A kind of file: how it is written, how it is read back to render, and how close that has to be."""

    write: Callable[[CIPSGenerator, Path, argparse.Namespace], None]
    read: Callable[[Path, CIPSGenerator], export.SynthesisFunction]
    closeness: float


def run(args: argparse.Namespace) -> int:
    """Convert; 1 where --check finds a difference."""
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
                close = difference <= form.closeness  # NaN is not close
                record |= {"check": "ok" if close else "differs", "largest_difference": difference}
        except (ValueError, ImportError) as error:
            raise _refused(error) from None
        except OSError as error:
            raise _not_written(args.out, error) from None
        if record.get("check") == "differs":
            say(record | {"largest_allowed": form.closeness, "written": False})
            return 1
        _hand_over(file, args.out)
    say(record)
    return 0


def _form_of(args: argparse.Namespace) -> Form:
    """The form that the output's ending names, once the options are seen to fit it."""
    ending = args.out.suffix.lower()
    if ending not in FORMS:
        raise CommandError(f"--out: got {str(args.out)!r}, must end in one of {', '.join(FORMS)}")
    given = {"--per-layer": args.per_layer, "--coords-per-image": args.coords_per_image, "--opset": args.opset}
    for option, value in given.items():
        fitting = (".onnx",) if option == "--opset" else (".pt2", ".onnx")
        if value and ending not in fitting:
            raise CommandError(f"{option}: only for {' and '.join(fitting)}, the output is {args.out.name!r}")
    return FORMS[ending]


def _inputs(args: argparse.Namespace) -> dict[str, bool]:
    """Which inputs an exported network takes."""
    return {"per_layer": args.per_layer, "coords_per_image": args.coords_per_image}


def _hand_over(file: Path, out: Path) -> None:
    """Move a file and those that were written beside it to their place, itself at last."""
    try:
        for part in sorted(file.parent.iterdir(), key=lambda part: part == file):
            move_into_place(part, out.parent / part.name)
    except OSError as error:
        raise _not_written(out, error) from None


def _not_written(out: Path, error: OSError) -> CommandError:
    return CommandError(f"--out: got {str(out)!r}, which cannot be written ({error.strerror or error})")


def _refused(error: ValueError | ImportError) -> CommandError:
    """The option that the library's error is about."""
    option = "--opset: " if str(error).startswith("opset: ") else "--out: "
    return CommandError(option + str(error).removeprefix("opset: "))


def _write_program(generator: CIPSGenerator, file: Path, args: argparse.Namespace) -> None:
    content = io.BytesIO()  # PyTorch's own writer ends the whole process where the disk is full
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
        closeness=1e-6,
    ),
    ".pt": Form(
        lambda generator, file, args: published.save_published(generator, file), _read_published, closeness=1e-6
    ),
    ".pt2": Form(_write_program, lambda file, generator: torch.export.load(file).module(), closeness=1e-4),
    ".onnx": Form(_write_onnx, lambda file, generator: export.open_onnx(file), closeness=1e-4),
}

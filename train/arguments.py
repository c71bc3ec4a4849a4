"""The command line of `python -m train`: its options and their help texts."""

import argparse
import shutil

from cips_fast.backends.choice import BACKENDS
from cips_fast.checks import shown
from cips_fast.command_line import OptionError, Parser
from cips_fast.generator import ACTIVATIONS, VARIANTS
from cips_fast.geometry import GEOMETRIES
from cips_fast.hardware import PRECISIONS

from .presets import MAX_CROP, PRESETS


class _Parser(Parser):
    """A parser whose errors are raised, not printed."""

    def error(self, message: str) -> None:
        raise OptionError(self.line_of(message))


def make_parser() -> argparse.ArgumentParser:
    """The parser of `python -m train`. An option that is not given is None, but for --dry-run."""
    columns = shutil.get_terminal_size().columns - 2
    parser = _Parser(
        prog="python -m train",
        usage="%(prog)s --res RES [options]",
        description="Train a CIPS generator. The same command resumes a run that was stopped.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=columns),
        allow_abbrev=False,
    )
    _add_main_options(parser)
    _add_network_options(parser.add_argument_group("networks"))
    _add_training_options(parser.add_argument_group("optimisation and output"))
    return parser


def _add_main_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--res", type=_whole_number, required=True, help="resolution of the images in pixels, a power of two")
    add("--data", help="images to train on: landscapes, bluemarble, a folder or a .zip file (default: landscapes)")
    add("--out", help="run folder to write (default: runs/DATA-RES)")
    add("--kimg", type=_number, help=f"length of the run in thousands of images {_by_preset('kimg')}")
    add("--batch", type=_whole_number, help=f"images per step {_by_preset('batch')}")
    add(
        "--crop",
        type=_whole_number,
        help="side of the training patches in pixels, RES for whole images "
        f"(default: RES, at most {MAX_CROP['cips']}; preset cpu: at most {MAX_CROP['cpu']})",
    )
    add(
        "--pixel-chunk",
        type=_whole_number,
        help="pixels of an image whose activations are in memory at a time (default: all)",
    )
    add(
        "--width",
        type=_width,
        help=f"channels of the generator's layers, or 'published' for the published widths {_by_preset('width')}",
    )
    add("--device", help="device that computes: auto, cpu, cuda, cuda:1, mps (default: auto)")
    add(
        "--precision",
        choices=("auto", *PRECISIONS),
        help="precision of the layers; auto is bf16 or fp16 if the device computes it natively, or else fp32 "
        "(default: auto)",
    )
    add("--backend", choices=BACKENDS, help="implementation of the layers (default: auto)")
    add(
        "--preset",
        choices=("auto", *PRESETS),
        help="set of defaults: cips for the published training, cpu for small networks, auto for the one that suits "
        "the device (default: auto)",
    )
    add("--seed", type=_whole_number, help="seed of all random draws (default: 0)")
    add("--dry-run", action="store_true", help="dry run, which prints the options, sizes and memory of a run and ends")
    add(
        "--geometry",
        choices=GEOMETRIES,
        help=f"geometry of the images: {'; '.join(f'{each.name}, {each.summary}' for each in GEOMETRIES.values())} "
        "(default: plane)",
    )


def _add_network_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--variant",
        choices=VARIANTS,
        help="structure of the generator: skip for RGB taps, res for residual blocks (default: skip)",
    )
    add("--activation", choices=ACTIVATIONS, help="activation of the generator's layers (default: lrelu)")
    add("--style-features", type=_whole_number, help=f"width of the latents {_by_preset('style_features')}")
    add("--mapping-layers", type=_whole_number, help=f"layers of the mapping network {_by_preset('mapping_layers')}")
    add(
        "--embedding-size",
        type=_whole_number,
        help="cells per side of the coordinate embedding (default: RES; preset cpu: 4)",
    )
    add(
        "--embedding-std",
        type=_number,
        help=f"initial standard deviation of the coordinate embedding {_by_preset('embedding_std')}",
    )
    add(
        "--max-frequency",
        type=_number,
        help="largest initial frequency of the Fourier features, in radians per unit of the coordinates "
        f"{_by_preset('max_frequency')}",
    )
    add(
        "--rgb-std",
        type=_number,
        help=f"initial standard deviation of the weights of the RGB taps {_by_preset('rgb_std')}",
    )
    add(
        "--style-std",
        type=_number,
        help=f"initial standard deviation of the weights that make styles of latents {_by_preset('style_std')}",
    )
    add(
        "--d-channels",
        type=_whole_number,
        help=f"largest number of channels in the discriminator {_by_preset('d_channels')}",
    )
    add(
        "--d-base",
        type=_whole_number,
        help="base of the discriminator's widths: it has min(d-channels, d-base / r) channels at resolution r "
        f"{_by_preset('d_base')}",
    )


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--stride-shares",
        type=_shares,
        help="shares of the patches at strides 1, 2, 4, ..., such as 0.1,0.2,0.7 "
        "(default: equal; preset cpu: doubled from each stride to the next)",
    )
    add(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="mirroring of images, left to right, with probability 1/2 (default: off; preset cpu: on for landscapes "
        "and bluemarble)",
    )
    add(
        "--style-mixing",
        type=_number,
        help=f"probability of a crossover: an image has the styles of two latents {_by_preset('style_mixing')}",
    )
    add("--g-lr", type=_number, help=f"learning rate of the generator {_by_preset('g_lr')}")
    add("--d-lr", type=_number, help=f"learning rate of the discriminator {_by_preset('d_lr')}")
    add("--r1-gamma", type=_number, help=f"weight of the R1 penalty {_by_preset('r1_gamma')}")
    add("--r1-every", type=_whole_number, help=f"steps from one R1 penalty to the next {_by_preset('r1_every')}")
    add(
        "--ema-kimg",
        type=_number,
        help=f"half-life of the generator's moving average in thousands of images {_by_preset('ema_kimg')}",
    )
    add(
        "--ema-ramp-up",
        type=_number,
        help=f"limit of that half-life, as a share of the images trained on so far {_by_preset('ema_ramp_up')}",
    )
    add(
        "--log-every",
        type=_whole_number,
        help=f"steps from a line of stats.jsonl to the next {_by_preset('log_every')}",
    )
    add("--preview-minutes", type=_number, help="minutes from one grid of previews to the next (default: 5)")
    add("--checkpoint-minutes", type=_number, help="minutes from one checkpoint to the next (default: 10)")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _bad_value(text, "a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _bad_value(text, "a number") from None


def _width(text: str) -> int | str:
    try:
        return text if text == "published" else int(text)
    except ValueError:
        raise _bad_value(text, "'published' or a whole number") from None


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        raise _bad_value(text, "numbers with commas between them, such as 0.1,0.2,0.7") from None


def _bad_value(text: str, wanted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"got {shown(text)}, must be {wanted}")


def _by_preset(name: str) -> str:
    """The default of an option, for its help line."""
    cips, cpu = (PRESETS[preset][name] for preset in ("cips", "cpu"))
    return f"(default: {cips:g})" if cips == cpu else f"(default: {cips:g}; preset cpu: {cpu:g})"

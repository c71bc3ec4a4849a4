"""Options of a training run: the command line, the presets, and every check that needs no data."""

import argparse
import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cips_fast.backends.choice import BACKENDS, resolve_backend
from cips_fast.checks import shown
from cips_fast.files.images import reason_of
from cips_fast.generator import ACTIVATIONS, VARIANTS
from cips_fast.geometry import GEOMETRIES
from cips_fast.hardware import native_half
from cips_fast.modules import LARGEST_FREQUENCY, MOST_CELLS, MOST_MAPPING_LAYERS

from .presets import MAX_CROP, NAMED_DATA, PRESETS

PRECISIONS = ("fp32", "bf16", "fp16")


class OptionError(ValueError):
    """A bad option: one line that names it, what it got and what it may be."""


@dataclass(frozen=True)
class Options:
    """A run, fully resolved. Those in `MAY_CHANGE` may differ when a run folder is taken up again."""

    res: int
    data: str
    out: str
    kimg: float
    device: str
    precision: str
    backend: str
    seed: int
    preset: str
    crop: int
    batch: int
    pixel_chunk: int | None
    stride_shares: tuple[float, ...]
    mirror: bool
    geometry: str
    variant: str
    width: int | str
    activation: str
    style_features: int
    mapping_layers: int
    embedding_size: int
    embedding_std: float
    max_frequency: float
    rgb_std: float
    style_std: float
    style_mixing: float
    d_channels: int
    d_base: int
    g_lr: float
    d_lr: float
    r1_gamma: float
    r1_every: int
    ema_kimg: float
    ema_ramp_up: float
    log_every: int
    preview_minutes: float
    checkpoint_minutes: float

    @property
    def patches(self) -> bool:
        """Whether the discriminator sees parts of images, and with them their coordinates."""
        return self.crop < self.res or GEOMETRIES[self.geometry].wraps_any


MAY_CHANGE = frozenset({"out", "kimg", "device", "pixel_chunk", "log_every", "preview_minutes", "checkpoint_minutes"})

INTEGER_MOST = 2**31 - 1
NUMBER_MOST = 1e30  # a float32 holds it
# The least and the largest value of each number. Of the sizes that networks are made of, memory may allow less.
RANGES = {
    **dict.fromkeys(("width", "style_features", "d_channels"), (1, 16384)),
    "embedding_size": (1, MOST_CELLS),
    "mapping_layers": (1, MOST_MAPPING_LAYERS),
    "batch": (1, 65536),
    **dict.fromkeys(("d_base", "pixel_chunk", "r1_every", "log_every"), (1, INTEGER_MOST)),
    "seed": (0, 2**32 - 1),
    "style_mixing": (0, 1),
    "kimg": (1e-9, 10**9),
    **dict.fromkeys(("preview_minutes", "checkpoint_minutes"), (1e-9, 10**9)),
    **dict.fromkeys(("g_lr", "d_lr"), (1e-30, NUMBER_MOST)),
    "max_frequency": (1e-30, LARGEST_FREQUENCY),
    "embedding_std": (0, LARGEST_FREQUENCY),
    **dict.fromkeys(("r1_gamma", "ema_kimg", "ema_ramp_up", "rgb_std", "style_std"), (0, NUMBER_MOST)),
}
KINDS = {
    "width": "'published' or a positive number",
    "pixel_chunk": "a positive number of pixels",
    "style_mixing": "a probability",
}
MAX_RES = 16384
SUM_TOLERANCE = 1e-5  # of stride shares, which users round
NUMPY_TOLERANCE = 1e-8


def parse(argv: Sequence[str] | None = None) -> tuple[Options, bool]:
    """Options of a command line, and whether it is a dry run; OptionError names what does not fit."""
    given = vars(_parser().parse_args(argv))
    dry_run = given.pop("dry_run")
    options = resolve({name: value for name, value in given.items() if value is not None})
    if not dry_run:
        from .dry_run import check_memory  # here, since that module needs this one

        check_memory(options)
    return options, dry_run


def resolve(given: dict[str, Any]) -> Options:
    """Fill in what was not given, from the preset and the machine, and check the whole.

    Raises:
        OptionError: an option that does not fit, alone or with another.
    """
    device = _device(given.get("device", "auto"))
    preset = given.get("preset", "auto")
    preset = ("cpu" if device == "cpu" else "cips") if preset == "auto" else preset
    res = given["res"]
    _require(4 <= res <= MAX_RES and _is_power_of_two(res), "res", res, f"a power of two from 4 to {MAX_RES}")
    crop = given.get("crop", min(res, MAX_CROP[preset]))
    _require(
        4 <= crop <= res and _is_power_of_two(crop), "crop", crop, f"a power of two from 4 to {res}, which is --res"
    )
    data = given.get("data", "landscapes")
    scales = int(math.log2(res // crop)) + 1
    values = PRESETS[preset] | {
        "data": data,
        "out": given.get("out") or _default_out(data, res),
        "backend": "auto",
        "pixel_chunk": None,
        "seed": 0,
        "mirror": preset == "cpu" and data in NAMED_DATA,
        "geometry": "plane",
        "variant": "skip",
        "activation": "lrelu",
        "embedding_size": 4 if preset == "cpu" else res,
        "stride_shares": _stride_shares(preset, scales),
        "preview_minutes": 5.0,
        "checkpoint_minutes": 10.0,
    }
    values |= given | {"device": device, "preset": preset, "res": res, "crop": crop}
    try:
        resolve_backend(values["backend"], torch.device(device), torch.float32)
    except (ValueError, ImportError) as error:
        raise OptionError(f"--backend: {str(error).removeprefix('backend: ')}") from None
    values["precision"] = _precision(given.get("precision", "auto"), device)
    values["stride_shares"] = _checked_shares(values["stride_shares"], res, crop, scales)
    options = Options(**values)
    _check(options)
    return options


def _check(options: Options) -> None:
    check_path("out", options.out)
    for name, (least, most) in RANGES.items():
        value = getattr(options, name)
        if value not in (None, "published"):
            kind = KINDS.get(name, "a positive number" if least else "a number")
            _require(least <= value <= most, name, value, f"{kind} from {least} to {most}")
    base = options.d_base
    _require(
        base >= options.crop, "d_base", base, f"at least --crop {options.crop}, for a channel or more at that size"
    )
    if options.width == "published":
        _require(options.res <= 1024, "width", "published", f"a number with --res {options.res}, beyond 1024")
    elif options.activation == "sinrelu":
        _require(options.width % 2 == 0, "width", options.width, "even with --activation sinrelu")
    _check_networks(options)


def _check_networks(options: Options) -> None:
    """Make both networks without their numbers, so that what their constructors refuse is refused here."""
    from .trainer import make_discriminator, make_generator  # here, since that module needs this one

    try:
        with torch.device("meta"):
            make_generator(options)
            make_discriminator(options)
    except ValueError as error:
        name, colon, reason = str(error).partition(":")
        raise OptionError(f"--{name.replace('_', '-')}{colon}{reason}") from None


def check_path(name: str, path: str) -> None:
    """Raise OptionError unless something is at the path of an option, or may be made there."""
    try:
        if not path:
            raise ValueError("an empty name")
        os.stat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # no permission, links in a loop, a long name, a folder below a file
        raise OptionError(f"--{name}: got {path!r}, which cannot be used ({reason_of(error)})") from None


def _default_out(data: str, res: int) -> str:
    if data not in NAMED_DATA:
        check_path("data", data)
    try:
        return str(Path("runs") / f"{Path(os.path.realpath(data)).stem}-{res}")
    except OSError as error:  # the current folder is gone
        raise OptionError(f"--data: got {data!r}, which cannot be used ({reason_of(error)})") from None


def _is_power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


def _checked_shares(shares: Sequence[float], res: int, crop: int, scales: int) -> tuple[float, ...]:
    """The shares of strides, divided by their sum where it is not 1 as NumPy demands when it draws by them."""
    total = sum(shares)
    fit = len(shares) == scales and min(shares) >= 0 and abs(total - 1) < SUM_TOLERANCE
    shares_of = "1 share, of stride 1" if scales == 1 else f"{scales} shares, of strides 1 to {2 ** (scales - 1)}"
    wanted = f"{shares_of}, that sum to 1, with --res {res} and --crop {crop}"
    _require(fit, "stride_shares", ",".join(f"{share:g}" for share in shares), wanted)
    return tuple(shares) if abs(total - 1) < NUMPY_TOLERANCE else tuple(share / total for share in shares)


def _stride_shares(preset: str, scales: int) -> tuple[float, ...]:
    """Published: every stride as often as any other. On a CPU the coarse ones more, since structure comes first."""
    if preset == "cips":
        return (1 / scales,) * scales
    weights = [2.0**i for i in range(scales)]
    return tuple(w / sum(weights) for w in weights)


def _device(name: str) -> str:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator.type if accelerator else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        device = None
    count = torch.accelerator.device_count() if accelerator else 0
    there = name == "cpu" or (
        device is not None
        and accelerator is not None
        and device.type == accelerator.type
        and (device.index or 0) < count
    )
    choices = ["auto", "cpu", *(f"{accelerator.type}:{i}" for i in range(count))] if accelerator else ["auto", "cpu"]
    why = ""
    if device is not None and device.type == "cuda" and not torch.cuda.is_available():
        why = f" ({'no CUDA device was found' if torch.backends.cuda.is_built() else 'this PyTorch has no CUDA'})"
    _require(there, "device", name, f"{', '.join(choices)} on this machine{why}")
    return name


def _precision(name: str, device: str) -> str:
    if name != "auto":
        return name
    return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[native_half(device)]


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise OptionError(f"--{name.replace('_', '-')}: got {shown(value)}, must be {wanted}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise OptionError(message.removeprefix("argument "))


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


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def choose(text: str) -> str:
        if text not in choices:
            raise _bad_value(text, f"one of {', '.join(choices)}")
        return text

    return choose


def _bad_value(text: str, wanted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"got {shown(text)}, must be {wanted}")


def _names(choices: Sequence[str]) -> str:
    return f"{{{','.join(choices)}}}"


def _parser() -> argparse.ArgumentParser:
    columns = shutil.get_terminal_size().columns - 2
    parser = _Parser(
        prog="python -m train",
        usage="%(prog)s --res RES [options]",
        description="Train a CIPS generator. The same command run again resumes.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=columns),
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--res", type=_whole_number, required=True, help="resolution of the images, a power of two")
    add("--data", help="landscapes (default), bluemarble, a folder or a .zip of images")
    add("--out", help="run folder (default: runs/DATA-RES)")
    add("--kimg", type=_number, help="length of the run, in thousands of images")
    add("--batch", type=_whole_number, help="images a step")
    add("--crop", type=_whole_number, help="side of the patches trained on; equal to --res for whole images")
    add(
        "--pixel-chunk",
        type=_whole_number,
        help="pixels of an image whose activations are held at a time (default: all)",
    )
    add("--width", type=_width, help="channels of the generator's layers, or 'published'")
    add("--device", help="auto (default), cpu, cuda, cuda:1, mps")
    add(
        "--precision",
        type=_one_of(("auto", *PRECISIONS)),
        metavar=_names(("auto", *PRECISIONS)),
        help="auto: bf16 or fp16 where the device computes it natively",
    )
    add("--backend", type=_one_of(BACKENDS), metavar=_names(BACKENDS), help="which implementation of the layers")
    add(
        "--preset",
        type=_one_of(("auto", *PRESETS)),
        metavar=_names(("auto", *PRESETS)),
        help="cips: the published training; cpu: small; auto: by device",
    )
    add("--seed", type=_whole_number, help="of everything drawn at random (default: 0)")
    add("--dry-run", action="store_true", help="print the resolved options, sizes and memory, and exit")
    add(
        "--geometry",
        type=_one_of(GEOMETRIES),
        metavar=_names(GEOMETRIES),
        help=f"{'; '.join(f'{each.name}: {each.summary}' for each in GEOMETRIES.values())} (default: plane)",
    )
    more = parser.add_argument_group("networks and optimisation (default: by preset)").add_argument
    more(
        "--variant",
        type=_one_of(VARIANTS),
        metavar=_names(VARIANTS),
        help="RGB taps, or residual blocks (default: skip)",
    )
    more("--activation", type=_one_of(ACTIVATIONS), metavar=_names(ACTIVATIONS), help="(default: lrelu)")
    more("--stride-shares", type=_shares, help="share of patches at strides 1, 2, 4, ...: 0.1,0.2,0.7")
    more("--mirror", action=argparse.BooleanOptionalAction, help="flip half of the images")
    more("--style-features", type=_whole_number, help="width of the latents")
    more("--mapping-layers", type=_whole_number, help="depth of the mapping network")
    more("--embedding-size", type=_whole_number, help="cells a side of the coordinate embedding")
    more("--embedding-std", type=_number, help="its initial standard deviation")
    more("--max-frequency", type=_number, help="initial range of the Fourier features, radians per unit")
    more("--rgb-std", type=_number, help="initial standard deviation of the RGB taps' weights")
    more("--style-std", type=_number, help="initial standard deviation of the styles' affine weights")
    more("--style-mixing", type=_number, help="probability of mixing two latents in training")
    more("--d-channels", type=_whole_number, help="largest width of the discriminator")
    more("--d-base", type=_whole_number, help="its width at resolution r is min(d-channels, d-base / r)")
    more("--g-lr", type=_number, help="generator's learning rate")
    more("--d-lr", type=_number, help="discriminator's learning rate")
    more("--r1-gamma", type=_number, help="weight of the R1 penalty")
    more("--r1-every", type=_whole_number, help="steps between its evaluations")
    more("--ema-kimg", type=_number, help="half-life of the generator's average, in thousands of images")
    more("--ema-ramp-up", type=_number, help="the half-life is at most this share of the images seen")
    more("--log-every", type=_whole_number, help="steps between lines of stats.jsonl")
    more("--preview-minutes", type=_number, help="minutes between preview grids (default: 5)")
    more("--checkpoint-minutes", type=_number, help="minutes between checkpoints (default: 10)")
    return parser


def to_dict(options: Options) -> dict[str, Any]:
    """Options as plain JSON values."""
    return json_values(dataclasses.asdict(options))


def json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples become lists, as they do in a JSON file."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

"""Options of a training run: their default values, and all checks that need no data."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cips_fast.backends.choice import resolve_backend
from cips_fast.checks import shown
from cips_fast.command_line import OptionError, named_after_options, option_of
from cips_fast.files.images import reason_of
from cips_fast.hardware import PRECISIONS, native_half
from cips_fast.modules import LARGEST_FREQUENCY, MOST_CELLS, MOST_MAPPING_LAYERS

from .arguments import make_parser
from .dry_run import check_memory
from .options import Options
from .presets import MAX_CROP, NAMED_DATA, PRESETS
from .trainer import make_discriminator, make_generator

MAX_INTEGER = 2**31 - 1
MAX_NUMBER = 1e30  # a float32 holds it
# The smallest and the largest value of each number. Memory may allow only smaller networks.
RANGES = {
    **dict.fromkeys(("width", "style_features", "d_channels"), (1, 16384)),
    "embedding_size": (1, MOST_CELLS),
    "mapping_layers": (1, MOST_MAPPING_LAYERS),
    "batch": (1, 65536),
    **dict.fromkeys(("d_base", "pixel_chunk", "r1_every", "log_every"), (1, MAX_INTEGER)),
    "seed": (0, 2**32 - 1),
    "style_mixing": (0, 1),
    "kimg": (1e-9, 10**9),
    **dict.fromkeys(("preview_minutes", "checkpoint_minutes"), (1e-9, 10**9)),
    **dict.fromkeys(("g_lr", "d_lr"), (1e-30, MAX_NUMBER)),
    "max_frequency": (1e-30, LARGEST_FREQUENCY),
    "embedding_std": (0, LARGEST_FREQUENCY),
    **dict.fromkeys(("r1_gamma", "ema_kimg", "ema_ramp_up", "rgb_std", "style_std"), (0, MAX_NUMBER)),
}
KINDS = {
    "width": "'published' or a positive number",
    "pixel_chunk": "a positive number of pixels",
    "style_mixing": "a probability",
}
MAX_RES = 16384
SUM_TOLERANCE = 1e-5  # of stride shares, which users round
NUMPY_TOLERANCE = 1e-8  # of probabilities, when NumPy draws by them


def parse(argv: Sequence[str] | None = None) -> tuple[Options, bool]:
    """The options of a command line, and whether it asks for a dry run; OptionError for a bad option."""
    given = vars(make_parser().parse_args(argv))
    dry_run = given.pop("dry_run")
    options = resolve({name: value for name, value in given.items() if value is not None})
    if not dry_run:
        check_memory(options)
    return options, dry_run


def resolve(given: dict[str, Any]) -> Options:
    """Fill in default values, which depend on the preset and the machine, and check all options.

    Args:
        given: values by option; `res` is required.

    Raises:
        OptionError: an option cannot be used, alone or together with another.
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
        with named_after_options({"backend": "--backend"}):
            resolve_backend(values["backend"], torch.device(device), torch.float32)
    except ImportError as error:
        raise OptionError(f"--backend: {error}") from None
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
    wanted = f"at least --crop {options.crop}, so that the discriminator has a channel at that size"
    _require(base >= options.crop, "d_base", base, wanted)
    if options.width == "published":
        _require(options.res <= 1024, "width", "published", f"a number with --res {options.res}, more than 1024")
    elif options.activation == "sinrelu":
        _require(options.width % 2 == 0, "width", options.width, "even with --activation sinrelu")
    _check_networks(options)


def _check_networks(options: Options) -> None:
    """Make both networks without their weights, so that options which their constructors refuse are refused here."""
    names = {name: option_of(name) for name in Options.__dataclass_fields__}
    with named_after_options(names | {"size": "--res", "channels": "--d-channels"}), torch.device("meta"):
        make_generator(options)
        make_discriminator(options)


def check_path(name: str, path: str) -> None:
    """Raise OptionError unless a file or folder is at the path of an option, or one can be made there."""
    try:
        if not path:
            raise ValueError("an empty name")
        os.stat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # no permission, links in a loop, a long name, a folder below a file
        raise OptionError(f"{option_of(name)}: got {path!r}, which cannot be used ({reason_of(error)})") from None


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
    """The shares of strides; they are divided by their sum if it differs from 1 by more than NumPy allows."""
    total = sum(shares)
    fit = len(shares) == scales and min(shares) >= 0 and abs(total - 1) < SUM_TOLERANCE
    shares_of = (
        "1 share, of stride 1, which is 1"
        if scales == 1
        else f"{scales} shares, of strides 1 to {2 ** (scales - 1)}, that sum to 1"
    )
    wanted = f"{shares_of}, with --res {res} and --crop {crop}"
    _require(fit, "stride_shares", ",".join(f"{share:g}" for share in shares), wanted)
    return tuple(shares) if abs(total - 1) < NUMPY_TOLERANCE else tuple(share / total for share in shares)


def _stride_shares(preset: str, scales: int) -> tuple[float, ...]:
    """Default shares: all strides equally often in the published training.

    On a CPU large strides are more frequent, because the coarse structure is learned first.
    """
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
    native = native_half(device) or torch.float32
    return next(known for known, dtype in PRECISIONS.items() if dtype == native)


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise OptionError(f"{option_of(name)}: got {shown(value)}, must be {wanted}")

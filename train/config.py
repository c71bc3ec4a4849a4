"""Options of a training run: the command line, the presets, and every check that needs no data."""

import argparse
import dataclasses
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cips_fast.functional import BACKENDS, resolve_backend
from cips_fast.generator import ACTIVATIONS, VARIANTS
from cips_fast.kernels.launch import native_half
from cips_fast.modules import GEOMETRIES

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
        return self.crop < self.res or self.geometry == "cylinder"


MAY_CHANGE = frozenset({"out", "kimg", "device", "pixel_chunk", "log_every", "preview_minutes", "checkpoint_minutes"})

# The published training: 8 GPUs with 4 images each; G's rate is 4/5 of 2e-3 for a regulariser it no longer has.
CIPS = {
    "kimg": 25000.0,
    "batch": 32,
    "width": 512,
    "style_features": 512,
    "mapping_layers": 8,
    "embedding_std": 1.0,
    "max_frequency": 4.5**0.5,
    "rgb_std": 1.0,
    "style_std": 1.0,
    "style_mixing": 0.0,
    "d_channels": 512,
    "d_base": 32768,
    "g_lr": 1.6e-3,
    "d_lr": 2e-3,
    "r1_gamma": 10.0,
    "r1_every": 16,
    "ema_kimg": 10.0,
    "ema_ramp_up": 0.05,
    "log_every": 100,
}

# Narrow networks and coarse patches, for visible progress in minutes on a few cores.
CPU = CIPS | {
    "kimg": 100.0,
    "batch": 16,
    "width": 128,
    "style_features": 128,
    "mapping_layers": 2,
    "embedding_std": 0.02,
    "max_frequency": 4.0,
    "rgb_std": 0.25,
    "style_std": 0.5,
    "d_channels": 256,
    "d_base": 2048,
    "g_lr": 2.5e-3,
    "d_lr": 2.5e-3,
    "r1_gamma": 1.0,
    "ema_kimg": 2.0,
    "log_every": 25,
}

POSITIVE = (
    *("kimg", "batch", "style_features", "mapping_layers", "embedding_size", "log_every", "r1_every", "max_frequency"),
    *("g_lr", "d_lr", "d_channels", "d_base", "preview_minutes", "checkpoint_minutes"),
)
NOT_NEGATIVE = ("r1_gamma", "ema_kimg", "ema_ramp_up", "embedding_std", "rgb_std", "style_std")

# Nothing in them tells left from right. In a user's images something may: text, clocks, traffic.
MAY_BE_MIRRORED = ("landscapes", "bluemarble")

PRESETS = {"cips": CIPS, "cpu": CPU}
MAX_CROP = {"cips": 256, "cpu": 32}


def parse(argv: Sequence[str] | None = None) -> tuple[Options, bool]:
    """Options of a command line, and whether it is a dry run; OptionError names what does not fit."""
    given = vars(_parser().parse_args(argv))
    dry_run = given.pop("dry_run")
    return resolve({name: value for name, value in given.items() if value is not None}), dry_run


def resolve(given: dict[str, Any]) -> Options:
    """Fill in what was not given, from the preset and the machine, and check the whole."""
    device = _device(given.get("device", "auto"))
    preset = given.get("preset", "auto")
    preset = ("cpu" if device == "cpu" else "cips") if preset == "auto" else preset
    res = given["res"]
    _require(res >= 4 and not res & (res - 1), "res", res, "a power of two of at least 4")
    crop = given.get("crop", min(res, MAX_CROP[preset]))
    _require(
        4 <= crop <= res and not crop & (crop - 1), "crop", crop, f"a power of two from 4 to {res} that divides res"
    )
    data = given.get("data", "landscapes")
    scales = int(math.log2(res // crop)) + 1
    values = PRESETS[preset] | {
        "data": data,
        "out": str(Path("runs") / f"{Path(data).resolve().stem}-{res}"),
        "backend": "auto",
        "pixel_chunk": None,
        "seed": 0,
        "mirror": preset == "cpu" and data in MAY_BE_MIRRORED,
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
    options = Options(**values)
    _check(options, scales)
    return options


def _check(options: Options, scales: int) -> None:
    for name in POSITIVE:
        _require(0 < getattr(options, name) < math.inf, name, getattr(options, name), "a positive number")
    for name in NOT_NEGATIVE:
        _require(0 <= getattr(options, name) < math.inf, name, getattr(options, name), "zero or a positive number")
    _require(0 <= options.seed < 2**32, "seed", options.seed, "a number from 0 to 2³² - 1")
    chunk = options.pixel_chunk
    _require(chunk is None or chunk > 0, "pixel_chunk", chunk, "a positive number of pixels")
    _require(0 <= options.style_mixing <= 1, "style_mixing", options.style_mixing, "a probability")
    shares = options.stride_shares
    fit = len(shares) == scales and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-6
    _require(fit, "stride_shares", list(shares), f"{scales} shares that sum to 1, of strides 1 to {2 ** (scales - 1)}")
    if options.width == "published":
        _require(options.res <= 1024, "width", "published", "a number beyond --res 1024")
    else:
        _require(options.width > 0, "width", options.width, "'published' or a positive number")


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
    except RuntimeError:
        device = None
    count = torch.accelerator.device_count() if accelerator else 0
    there = device is not None and (
        device.type == "cpu"
        or (accelerator is not None and device.type == accelerator.type and (device.index or 0) < count)
    )
    choices = ["auto", "cpu"] + [f"{accelerator.type}:{i}" for i in range(count)] if accelerator else ["auto", "cpu"]
    _require(there, "device", name, f"{', '.join(choices)} on this machine")
    return name


def _precision(name: str, device: str) -> str:
    if name != "auto":
        return name
    return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[native_half(device)]


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise OptionError(f"--{name.replace('_', '-')}: got {value!r}, must be {wanted}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise OptionError(message)


def _width(text: str) -> int | str:
    return text if text == "published" else int(text)


def _shares(text: str) -> tuple[float, ...]:
    return tuple(float(share) for share in text.split(","))


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
    add("--res", type=int, required=True, help="resolution of the images, a power of two")
    add("--data", help="landscapes (default), bluemarble, a folder or a .zip of images")
    add("--out", help="run folder (default: runs/DATA-RES)")
    add("--kimg", type=float, help="length of the run, in thousands of images")
    add("--batch", type=int, help="images a step")
    add("--crop", type=int, help="side of the patches trained on; equal to --res for whole images")
    add("--pixel-chunk", type=int, help="pixels of an image whose activations are held at a time (default: all)")
    add("--width", type=_width, help="channels of the generator's layers, or 'published'")
    add("--device", help="auto (default), cpu, cuda, cuda:1, mps")
    add("--precision", choices=("auto", *PRECISIONS), help="auto: bf16 or fp16 where the device computes it natively")
    add("--backend", choices=BACKENDS, help="which implementation of the layers")
    add("--preset", choices=("auto", *PRESETS), help="cips: the published training; cpu: small; auto: by device")
    add("--seed", type=int, help="of everything drawn at random (default: 0)")
    add("--dry-run", action="store_true", help="print the resolved options, sizes and memory, and exit")
    add(
        "--geometry",
        choices=GEOMETRIES,
        help="cylinder: panoramas of 360°, RES high and twice as wide (default: plane)",
    )
    more = parser.add_argument_group("networks and optimisation (default: by preset)").add_argument
    more("--variant", choices=VARIANTS, help="RGB taps, or residual blocks (default: skip)")
    more("--activation", choices=ACTIVATIONS, help="(default: lrelu)")
    more("--stride-shares", type=_shares, help="share of patches at strides 1, 2, 4, …: 0.1,0.2,0.7")
    more("--mirror", action=argparse.BooleanOptionalAction, help="flip half of the images")
    more("--style-features", type=int, help="width of the latents")
    more("--mapping-layers", type=int, help="depth of the mapping network")
    more("--embedding-size", type=int, help="cells a side of the coordinate embedding")
    more("--embedding-std", type=float, help="its initial standard deviation")
    more("--max-frequency", type=float, help="initial range of the Fourier features, radians per unit")
    more("--rgb-std", type=float, help="initial standard deviation of the RGB taps' weights")
    more("--style-std", type=float, help="initial standard deviation of the styles' affine weights")
    more("--style-mixing", type=float, help="probability of mixing two latents in training")
    more("--d-channels", type=int, help="largest width of the discriminator")
    more("--d-base", type=int, help="its width at resolution r is min(d-channels, d-base / r)")
    more("--g-lr", type=float, help="generator's learning rate")
    more("--d-lr", type=float, help="discriminator's learning rate")
    more("--r1-gamma", type=float, help="weight of the R1 penalty")
    more("--r1-every", type=int, help="steps between its evaluations")
    more("--ema-kimg", type=float, help="half-life of the generator's average, in thousands of images")
    more("--ema-ramp-up", type=float, help="the half-life is at most this share of the images seen")
    more("--log-every", type=int, help="steps between lines of stats.jsonl")
    more("--preview-minutes", type=float, help="minutes between preview grids (default: 5)")
    more("--checkpoint-minutes", type=float, help="minutes between checkpoints (default: 10)")
    return parser


def to_dict(options: Options) -> dict[str, Any]:
    """Options as plain JSON values."""
    return json_values(dataclasses.asdict(options))


def json_values(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples become lists, as they do in a JSON file."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

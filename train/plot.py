"""python -m train.plot: losses, scores and speed of a run, from its stats.jsonl."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cips_fast.console import prepare_streams

from .stats_file import read_records

USAGE = "usage: python -m train.plot RUN_FOLDER OUT.png"
SMOOTHING = 20  # most lines of stats.jsonl in the running mean
FEW = 60  # lines; so few are drawn as points that can be told apart
PANELS = {
    "loss": {"generator": "g_loss", "discriminator": "d_loss"},
    "mean score": {"real": "real_score", "generated": "fake_score"},
    "E‖∇D‖²": {"R1, before γ/2": "r1"},
    "images a second": {"speed": "images_per_second"},
}


def plot(run_folder: Path, out: Path) -> None:
    """Draw a run's statistics: faint as logged, strong as a running mean; few of them as points on a line.

    Raises:
        ValueError: the statistics hold no record.
        OSError: a file cannot be read or written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_records(run_folder / "stats.jsonl")
    if not records:
        raise ValueError(f"{str(run_folder / 'stats.jsonl')!r} holds no statistics yet")
    minutes = _series(records, "seconds") / 60
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(16, 3.2), constrained_layout=True)
    for axis, (label, series) in zip(axes, PANELS.items(), strict=True):
        for colour, (name, key) in zip(("tab:blue", "tab:orange"), series.items(), strict=False):
            values = _series(records, key)
            if len(values) <= FEW:
                axis.plot(minutes, values, color=colour, marker="o", markersize=4, linewidth=1.6, label=name)
            else:
                axis.plot(minutes, values, color=colour, alpha=0.25, linewidth=0.7)
                axis.plot(running_mean(minutes), running_mean(values), color=colour, linewidth=1.6, label=name)
        axis.set(xlabel="minutes", title=label)
        axis.legend()
    axes[2].set_yscale("log")
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Means of `SMOOTHING` consecutive values, or of all if they are fewer."""
    width = min(SMOOTHING, len(values))
    return np.convolve(values, np.full(width, 1 / width), mode="valid")


def _series(records: Sequence[dict], key: str) -> np.ndarray:
    """One value a record, NaN where there is none, which leaves a gap in the curve."""
    return np.array([np.nan if record.get(key) is None else record[key] for record in records], float)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise SystemExit(_complain(f"{message}; {USAGE}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 for bad input."""
    prepare_streams()
    parser = _Parser(prog="python -m train.plot", description="Plot a run's losses, scores and speed.")
    parser.add_argument("run_folder", metavar="RUN_FOLDER", type=Path, help="a folder with a stats.jsonl")
    parser.add_argument("out", metavar="OUT.png", type=Path, help="the picture to write, .png, .svg or .pdf")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:
        return int(end.code or 0)
    if not (arguments.run_folder / "stats.jsonl").is_file():
        return _complain(f"RUN_FOLDER: got {str(arguments.run_folder)!r}, must be a run's folder; {USAGE}")
    try:
        plot(arguments.run_folder, arguments.out)
    except ImportError:
        return _complain("this needs matplotlib: pip install 'cips_fast[metrics]'")
    except (ValueError, TypeError, OSError) as error:
        return _complain(f"{error}")
    return 0


def _complain(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

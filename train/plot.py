"""python -m train.plot RUN_FOLDER OUT.png: losses, scores and speed of a run, from its stats.jsonl."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SMOOTHING = 20  # lines of stats.jsonl in the running mean


def plot(run_folder: Path, out: Path) -> None:
    """Draw a run's statistics: faint as logged, strong as a running mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(line) for line in (run_folder / "stats.jsonl").read_text().splitlines()]
    minutes = np.array([record["seconds"] for record in records]) / 60
    panels = {
        "loss": {"generator": "g_loss", "discriminator": "d_loss"},
        "mean score": {"real": "real_score", "generated": "fake_score"},
        "E‖∇D‖²": {"R1, before γ/2": "r1"},
        "images a second": {"speed": "images_per_second"},
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(16, 3.2), constrained_layout=True)
    for axis, (label, series) in zip(axes, panels.items(), strict=True):
        for colour, (name, key) in zip(("tab:blue", "tab:orange"), series.items(), strict=False):
            values = np.array([record[key] for record in records])
            axis.plot(minutes, values, color=colour, alpha=0.25, linewidth=0.7)
            smooth, times = running_mean(values), running_mean(minutes)
            axis.plot(times, smooth, color=colour, linewidth=1.6, label=name)
        axis.set(xlabel="minutes", title=label)
        axis.legend()
    axes[2].set_yscale("log")
    figure.savefig(out, dpi=110)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Means of `SMOOTHING` consecutive values, or of all if they are fewer."""
    width = min(SMOOTHING, len(values))
    return np.convolve(values, np.full(width, 1 / width), mode="valid")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 for bad input."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 2 or not (Path(arguments[0]) / "stats.jsonl").is_file():
        print("usage: python -m train.plot RUN_FOLDER OUT.png, RUN_FOLDER holding a stats.jsonl", file=sys.stderr)
        return 2
    plot(Path(arguments[0]), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

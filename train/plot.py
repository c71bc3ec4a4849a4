"""python -m train.plot: plot the losses, scores and speed of a run, which are in its stats.jsonl."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cips_fast.command_line import OptionError, Parser
from cips_fast.console import complain, prepare_streams

from .stats_file import read_records

SMOOTHING = 20  # lines of stats.jsonl in the running mean
MAX_POINTS = 60  # with more lines in stats.jsonl the curves are drawn without points
PANELS = {
    "loss": {"generator": "g_loss", "discriminator": "d_loss"},
    "mean score": {"real": "real_score", "generated": "fake_score"},
    "E‖∇D‖²": {"R1, before γ/2": "r1"},
    "images a second": {"speed": "images_per_second"},
}


def plot(run_folder: Path, out: Path) -> None:
    """Draw a run's statistics: the logged values in faint colours, their running mean in full colours.

    A few values are drawn as points on a line.

    Args:
        run_folder: the folder with the run's stats.jsonl.
        out: the picture to write.

    Raises:
        OptionError: the statistics hold no record, or the ending of `out` names no format of a picture.
        ValueError, TypeError: a record has a value that is not a number.
        OSError: a file cannot be read or written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.backend_bases import FigureCanvasBase

    endings = [f".{ending}" for ending in FigureCanvasBase.get_supported_filetypes()]
    if out.suffix.lower() not in endings:
        raise OptionError(f"OUT.png: got {str(out)!r}, must end in one of {', '.join(endings)}")
    records = read_records(run_folder / "stats.jsonl")
    if not records:
        raise OptionError(f"RUN_FOLDER: got {str(run_folder)!r}, whose stats.jsonl has no statistics yet")
    minutes = _series(records, "seconds") / 60
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(16, 3.2), constrained_layout=True)
    for axis, (label, series) in zip(axes, PANELS.items(), strict=True):
        for colour, (name, key) in zip(("tab:blue", "tab:orange"), series.items(), strict=False):
            values = _series(records, key)
            if len(values) <= MAX_POINTS:
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
    """Means of `SMOOTHING` consecutive values, or of all values if there are fewer."""
    width = min(SMOOTHING, len(values))
    return np.convolve(values, np.full(width, 1 / width), mode="valid")


def _series(records: Sequence[dict], key: str) -> np.ndarray:
    """One value for each record; a missing value is NaN, which leaves a gap in the curve."""
    return np.array([np.nan if record.get(key) is None else record[key] for record in records], float)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status, which is 2 for bad input."""
    prepare_streams()
    parser = Parser(prog="python -m train.plot", description="Plot the losses, scores and speed of a run.")
    parser.add_argument("run_folder", metavar="RUN_FOLDER", type=Path, help="folder of a run, with its stats.jsonl")
    parser.add_argument("out", metavar="OUT.png", type=Path, help="picture to write: a .png, .svg or .pdf")
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # after --help, or after an error
        return int(end.code or 0)
    run_folder = str(arguments.run_folder)
    try:
        if not (arguments.run_folder / "stats.jsonl").is_file():
            raise OptionError(f"RUN_FOLDER: got {run_folder!r}, must be the folder of a run, which has a stats.jsonl")
        plot(arguments.run_folder, arguments.out)
    except OptionError as error:
        complain(f"error: {error}")
    except ImportError:
        complain("error: OUT.png: a plot needs matplotlib: pip install 'cips_fast[metrics]'")
    except OSError as error:
        complain(f"error: {error}")
    except (ValueError, TypeError) as error:
        complain(f"error: RUN_FOLDER: got {run_folder!r}, whose stats.jsonl is damaged ({error})")
    else:
        return 0
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""Write the last run of the benchmarks as a page of tables and plots.

    python -m benchmarks.report [RUN.json] [--out FOLDER]

Writes NAME.md, and NAME-time.png, NAME-memory.png and NAME-roofline.png if the run has figures for them, into
.benchmarks/report. NAME is `cpu` or the name of the GPU. `--out docs/benchmarks` replaces the documented pages.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .plots import plot_all
from .results import PATH

FOLDER = PATH.parent / "report"
HEADER = ["", "contender", "ms", "× published", "GFLOP/s", "of GEMM", "MiB"]
TITLES = {
    "generator": "Whole generator",
    "mod_fc": "One ModFC layer, 512 to 512",
    "fourier_encode": "Encoding of coordinates, 512 + 512 channels",
    "modulate": "Modulated weights, 512 to 512",
    "training step": "A step of training, `--res 512`",
}
READING = """\
The times are medians. Contenders took turns, and each was checked before against float64 formulas: its result and, in
backward passes, every gradient. *× published* is the speed relative to the published formulation in float32. *of GEMM*
is the time of the plain matrix products that the operation needs, as a share of the contender's time; they are measured
in the same turns, in the same shapes and precision. *MiB* is the peak of memory in a call, beyond its arguments. *Left
out*: a call would have taken longer than the run allowed.
"""


def page(run: dict[str, Any], name: str, plots: Sequence[str]) -> str:
    """The run as a Markdown page that shows the given plots of the same folder."""
    machine = {key: value for key, value in run["machine"].items() if value is not None}
    machine["copied bytes a second"] = f"{machine['copied bytes a second'] / 1e9:.0f} billion, read and written"
    lines = [f"# Measured on {machine.pop('device')}", ""]
    lines += [", ".join(f"{key} {value}" for key, value in machine.items()) + ".", ""]
    command = f"pytest benchmarks/ --benchmark-only --longest-call {run['longest call']:g}"
    lines += [f"Made by `{command}` and `python -m benchmarks.report`.", "", READING]
    if missing := missing_from(run):
        lines += [f"**A partial run**: it has {missing}.", ""]
    lines += [f"![{what}]({name}-{what}.png)" for what in plots]
    ops = dict.fromkeys(group["op"] for group in run["groups"])
    for op in sorted(ops, key=list(TITLES).index):
        for direction in dict.fromkeys(group["direction"] for group in run["groups"] if group["op"] == op):
            groups = [group for group in run["groups"] if (group["op"], group["direction"]) == (op, direction)]
            lines += ["", f"## {TITLES[op]}: {direction}", "", *table(HEADER, rows(groups))]
    for what in dict.fromkeys(one["what"] for one in run["single"]):
        figures = [{k: v for k, v in one.items() if k != "what"} for one in run["single"] if one["what"] == what]
        cells = [[f"{value:.4g}" if value < 1e4 else f"{value:,.0f}" for value in one.values()] for one in figures]
        lines += ["", f"## {what[0].upper()}{what[1:]}", "", *table(list(figures[0]), cells)]
    return "\n".join(lines) + "\n"


def missing_from(run: dict[str, Any]) -> str:
    """A description of what a partial run lacks; empty for a complete run."""
    there = {group["op"] for group in run["groups"]}
    lacking = [TITLES[op][0].lower() + TITLES[op][1:] for op in TITLES if op not in there]
    parts = [f"no figures for: {'; '.join(lacking)}"] if lacking else []
    if run.get("deselected"):  # older files have no such entry
        parts.append(f"{run['deselected']} benchmarks deselected")
    return " and ".join(parts)


def rows(groups: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """One row for each contender, including those that were left out."""
    for group in groups:
        where = f"{group['size']}² B{group['batch']}" if group["size"] else f"B{group['batch']}"
        title = " ".join(filter(None, (where, group["note"])))
        published = group["contenders"].get("published fp32")
        for contender, one in group["contenders"].items():
            times = f"{published['seconds'] / one['seconds']:.2f}" if published else ""
            rate, share, peak = one["GFLOP/s"], one["share of GEMM"], one["peak bytes"]
            yield [
                title,
                contender,
                f"{one['seconds'] * 1e3:,.2f}",
                times,
                f"{rate:,.0f}" if rate else "",
                f"{share:.2f}" if share else "",
                "" if peak is None else f"{peak / 2**20:,.0f}",
            ]
            title = ""
        for contender, seconds in group["left out"].items():
            yield ["", contender, f"left out: {seconds:.0f} s", "", "", "", ""]


def table(header: Sequence[str], cells: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| {' | '.join(header)} |"
    yield "|" + " --- |" * len(header)
    for row in cells:
        yield f"| {' | '.join(row)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; return 0, or 2 if there is no such run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=PATH, help="file of a run (default: the last run)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: .benchmarks/report)")
    options = parser.parse_args(argv)
    if not options.run.exists():
        wanted = "must be a file that `pytest benchmarks/ --benchmark-only` wrote"
        print(f"error: run: got {str(options.run)!r}, {wanted}", file=sys.stderr)
        return 2
    run = json.loads(options.run.read_text(encoding="utf-8"))
    machine = run["machine"]
    name = "cpu" if machine["kind"] == "cpu" else re.sub(r"\W+", "-", machine["device"].lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    if missing := missing_from(run):
        print(f"warning: a partial run: it has {missing}", file=sys.stderr)
    plots = plot_all(run, options.out / name)
    (options.out / f"{name}.md").write_text(page(run, name, plots), encoding="utf-8")
    print(f"wrote {options.out / name}.md, plots: {', '.join(plots) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

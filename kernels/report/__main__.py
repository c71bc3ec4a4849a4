"""What every kernel takes and could take, from its compiled code and the data sheets, without a GPU.

    python -m cips_fast.kernels.report [--target sm_90 ...] [--kernel NAME] [--json]

Compiled are all launches of one image at 256², and what an image costs in all is counted. Nothing is run, so nothing is
said of time but what it cannot be less than.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from ..chips import DATA_SHEETS, TARGETS
from .per_image import SIZES, WAYS, Total, total
from .per_kernel import KernelReport, chips_of, kernel_reports
from .printing import print_kernels, print_totals


def image_totals(targets: Sequence[str]) -> list[Total]:
    """What one image costs, by all ways of computing it, on the chips of these architectures."""
    return [
        total(way, direction, size, chip) for size in SIZES for way, direction in WAYS for chip in chips_of(targets)
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cips_fast.kernels.report", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--target",
        nargs="+",
        choices=TARGETS,
        default=list(dict.fromkeys(chip.architecture for chip in DATA_SHEETS)),
        help="architectures to compile for (default: those of the five chips with data sheets)",
    )
    parser.add_argument(
        "--kernel",
        default="",
        metavar="NAME",
        help="part of the names of the kernels to report, without totals (default: all)",
    )
    parser.add_argument("--json", action="store_true", help="JSON output instead of tables")
    options = parser.parse_args(arguments)
    options.target = list(dict.fromkeys(options.target))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    options = _parse(arguments)
    kernels = kernel_reports(options.target, options.kernel)
    if not kernels:
        raise SystemExit(f"--kernel: no kernel's name contains {options.kernel!r}")
    totals = [] if options.kernel else image_totals(options.target)
    if options.json:
        everything = {
            "chips": [asdict(chip) for chip in chips_of(options.target)],
            "kernels": [_plain(report) for report in kernels],
            "images": [asdict(one) for one in totals],
        }
        print(json.dumps(everything, indent=1, ensure_ascii=False))
        return
    for target in options.target:
        print_kernels(target, [report for report in kernels if report.target == target])
    print_totals(totals)


def _plain(report: KernelReport) -> dict:
    """A report with names in the place of tuples."""
    floors = {chip: floor and floor._asdict() for chip, floor in report.floors.items()}
    return asdict(report) | {"occupancy": report.occupancy and report.occupancy._asdict(), "floors": floors}


if __name__ == "__main__":
    main()

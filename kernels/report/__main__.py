"""What every kernel uses and the least time for its work, from compiled code and data sheets. Needs no GPU.

    python -m cips_fast.kernels.report [--target sm_90 ...] [--kernel NAME] [--json]

The command counts the launches, operations and bytes of one image, then compiles every kernel that one image at 256²
launches. It runs no kernel, so it reports only lower bounds on time.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from ..chips import DATA_SHEETS, TARGETS
from .per_image import PASSES, SIZES, Total, total
from .per_kernel import KernelReport, chips_of, kernel_reports
from .printing import Parser, print_kernels, print_legend, print_totals


def image_totals(targets: Sequence[str]) -> list[Total]:
    """The totals of one image on the chips of these architectures, for every pass in `per_image.PASSES`."""
    return [
        total(way, direction, size, chip) for size in SIZES for way, direction in PASSES for chip in chips_of(targets)
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m cips_fast.kernels.report", description=__doc__.split("\n")[0])
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
    totals = [] if options.kernel else image_totals(options.target)
    if not options.json:
        print_totals(totals)
    kernels = kernel_reports(options.target, options.kernel)
    if not kernels:
        print(f"error: --kernel: got {options.kernel!r}, must be part of a kernel's name", file=sys.stderr)
        sys.exit(2)
    if options.json:
        everything = {
            "chips": [asdict(chip) for chip in chips_of(options.target)],
            "kernels": [_plain(report) for report in kernels],
            "images": [asdict(one) for one in totals],
        }
        print(json.dumps(everything, indent=1, ensure_ascii=False))
        return
    print_legend()
    for target in options.target:
        print_kernels(target, [report for report in kernels if report.target == target])


def _plain(report: KernelReport) -> dict:
    """A report as a dictionary, also where it has named tuples."""
    floors = {chip: floor and floor._asdict() for chip, floor in report.floors.items()}
    return asdict(report) | {"occupancy": report.occupancy and report.occupancy._asdict(), "floors": floors}


if __name__ == "__main__":
    main()

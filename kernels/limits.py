"""The most registers, stack and shared memory that any kernel uses, for each target. Needs no GPU.

    python -m cips_fast.kernels.limits [--target sm_90 ...]

The kernels are compiled by the installed version of Triton. To try another version without another PyTorch, install it
to a folder, `pip install --no-deps --target FOLDER triton==3.6.0`, and put FOLDER on PYTHONPATH.
"""

import multiprocessing
import os
from collections.abc import Sequence

import torch
import triton

from .chips import TARGETS
from .report.compile import Resources, compile_call, resources
from .report.printing import Parser, print_table
from .report.workload import production_calls


def compile_all(target: str) -> list[Resources]:
    """What the kernel of every launch uses on a target, compiled in as many processes as there are cores."""
    jobs = [(target, index) for index in range(len(production_calls(target)))]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), torch.set_num_threads, (1,)) as pool:
        return pool.map(_compile_one, jobs, chunksize=1)


def _compile_one(job: tuple[str, int]) -> Resources:
    target, index = job
    return resources(compile_call(production_calls(target)[index], target))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table with a row for each target."""
    parser = Parser(prog="python -m cips_fast.kernels.limits", description=__doc__.split("\n")[0])
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=TARGETS, help="architectures (default: all)")
    targets = dict.fromkeys(parser.parse_args(arguments).target)
    heads = ["Triton", "target", "kernels", "with stack", "most registers", "most shared KiB"]
    rows = []
    for target in targets:
        used = compile_all(target)
        most = [max(one.registers for one in used), max(one.shared for one in used) / 1024]
        rows.append([triton.__version__, target, len(used), sum(one.stack > 0 for one in used), *most])
    print_table(heads, rows, text=2)


if __name__ == "__main__":
    main()

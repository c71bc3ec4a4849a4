"""Collect everything that this project would like to know about a GPU in one archive.

    python -m benchmarks.first_run [FOLDER]

Runs all tests, all benchmarks, the kernels' report and a short training run, and records the machine and the tiles that
the tuner chose. If a command fails, its exit status is noted and the next one runs. FOLDER (default: `gpu-run`) is
created, and archived as FOLDER.zip.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def commands_in(folder: Path) -> dict[str, list[str]]:
    """The commands by name. The files that they write go to the folder."""
    python = [sys.executable, "-m"]
    benchmarks = ["benchmarks/", "--benchmark-only", f"--benchmark-json={folder / 'benchmarks.json'}"]
    return {
        "machine": [*python, "torch.utils.collect_env"],
        "tests": [*python, "pytest", "-rs"],
        "benchmarks": [*python, "pytest", *benchmarks],
        "tables": [*python, "benchmarks.report", "--out", str(folder / "tables")],
        "report": [*python, "cips_fast.kernels.report"],
        "training": [*python, "train", "--res", "256", "--kimg", "2", "--out", str(folder / "train")],
    }


def run_commands(commands: Mapping[str, Sequence[str]], folder: Path) -> dict[str, int]:
    """Run every command, write its output to FOLDER/NAME.txt, and return the exit statuses by name."""
    environment = os.environ | {"CIPS_FAST_CACHE": str(folder / "cache")}
    statuses = {}
    for name, command in commands.items():
        start = time.perf_counter()
        print(f"{name}: {' '.join(command)}", flush=True)
        with open(folder / f"{name}.txt", "w") as output:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        statuses[name] = done.returncode
        print(f"    exit {done.returncode} after {time.perf_counter() - start:.0f} s", flush=True)
    return statuses


def main(argv: Sequence[str]) -> int:
    """Return 0 if every command succeeded, 1 if one failed, 2 without a GPU or if the folder exists."""
    folder = Path(argv[0] if argv else "gpu-run").resolve()
    if not torch.cuda.is_available():
        print("error: PyTorch finds no GPU here", file=sys.stderr)
        return 2
    if folder.exists():
        print(f"error: FOLDER: got {str(folder)!r}, which exists, must be a new folder", file=sys.stderr)
        return 2
    folder.mkdir(parents=True)
    statuses = run_commands(commands_in(folder), folder)
    for part in ("landscapes", "checkpoints"):  # drawn images and networks are large and tell nothing
        for path in folder.rglob(f"{part}*"):
            shutil.rmtree(path, ignore_errors=True)
    print(f"please send {shutil.make_archive(str(folder), 'zip', folder)}")
    return int(any(statuses.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""python -m benchmarks.first_run [FOLDER]: everything that this project would like to know of a GPU, in one archive.

The machine, all tests, all benchmarks, the kernels' report, a short training run, and the tiles that the tuner chose. A
step that fails is noted and the next one runs. FOLDER, `gpu-run` unless given, is made and archived as FOLDER.zip.
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


def steps(folder: Path) -> dict[str, list[str]]:
    """Commands by name; what they write goes to the folder."""
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


def run_steps(commands: Mapping[str, Sequence[str]], folder: Path) -> dict[str, int]:
    """Run every command, its output in FOLDER/NAME.txt; exit statuses by name."""
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
    """0 if every step succeeded, 1 if one failed, 2 without a GPU or if the folder is there."""
    folder = Path(argv[0] if argv else "gpu-run").resolve()
    if not torch.cuda.is_available():
        print("error: PyTorch finds no GPU here", file=sys.stderr)
        return 2
    if folder.exists():
        print(f"error: FOLDER: got {str(folder)!r}, which exists", file=sys.stderr)
        return 2
    folder.mkdir(parents=True)
    statuses = run_steps(steps(folder), folder)
    for part in ("landscapes", "checkpoints"):  # drawn images and networks: large, and nothing to learn from
        for path in folder.rglob(f"{part}*"):
            shutil.rmtree(path, ignore_errors=True)
    print(f"please send {shutil.make_archive(str(folder), 'zip', folder)}")
    return int(any(statuses.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Tiny training runs: in this process on stripes, and as commands on a folder of noise."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cips_fast.train import loop
from cips_fast.train.config import resolve
from cips_fast.train.options import Options
from cips_fast.train.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
TINY = {
    "res": 16, "crop": 8, "batch": 2, "width": 8, "style_features": 8, "embedding_size": 8, "d_channels": 8,
    "d_base": 64, "r1_every": 2, "log_every": 1, "device": "cpu", "precision": "fp32", "data": "stripes",
}  # fmt: skip
SMALL = ("--res", "32", "--batch", "4", "--width", "8", "--style-features", "8", "--d-channels", "8", "--d-base", "64")


class Stripes:
    """Images of one random gradient each."""

    name, resolution = "stripes", 16

    def __len__(self):
        return 5

    def load(self, index):
        rng = np.random.default_rng(index)
        ramp = np.linspace(0, 1, 16)[:, None, None] * rng.integers(0, 255, 3)
        return np.broadcast_to(ramp, (16, 16, 3)).astype(np.uint8)


def options(**changes) -> Options:
    return resolve(TINY | changes)


def train(folder, **changes) -> RunFolder:
    """Run or resume in this process."""
    made = options(out=str(folder), **changes)
    run_folder = RunFolder(folder)
    run_folder.check(made)
    assert loop.run(made, run_folder, Stripes()) == 0
    return run_folder


def noise_images(folder: Path) -> Path:
    """A folder of four small images."""
    folder.mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def start(images: Path, out: Path, *more: str, prefix: tuple[str, ...] = (), **pipes) -> subprocess.Popen:
    """`python -m train` on a folder of images, logging every step."""
    command = [*prefix, sys.executable, "-m", "train", *SMALL, "--device", "cpu", "--log-every", "1"]
    command += ["--data", str(images), "--out", str(out), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if hasattr(signal, "SIGHUP"):  # tests may themselves run under nohup
        streams["preexec_fn"] = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    streams |= pipes
    return subprocess.Popen(command, cwd=ROOT, env=environment, **streams)


def wait_for(process: subprocess.Popen, words: str) -> str:
    """The first line of a process's output that holds the words."""
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"the process ended before it said {words!r}: {process.stderr.read()}")

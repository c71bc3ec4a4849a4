"""What the user sees of a run, a bar on a terminal or lines in a log file, and how its time and speed are measured."""

import sys
import time
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from cips_fast.console import Forgiving, is_terminal

BAR = "{percentage:3.0f}% {bar} {kimg} kimg  step {n}  {speed:>6} img/s  {elapsed} gone, {remaining} left{postfix}"


@dataclass
class Clock:
    """Seconds of training, including those of earlier sessions of the run."""

    earlier: float = 0.0

    def __post_init__(self) -> None:
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.start


class Schedule:
    """Becomes due once an interval."""

    def __init__(self, interval: float, first: float):
        self.interval = interval
        self.next = first

    def due(self, seconds: float) -> bool:
        """Whether it has become due since the last call."""
        if seconds < self.next:
            return False
        self.next = (seconds // self.interval + 1) * self.interval
        return True


@dataclass
class Window:
    """Measures images a second since the last reading."""

    seconds: float
    images: int
    paused: float = 0.0

    def pause(self, seconds: float) -> None:
        """Leave these seconds out of the next reading."""
        self.paused += seconds

    def rate(self, seconds: float, images: int) -> float:
        """Images a second since the last call."""
        rate = (images - self.images) / max(seconds - self.seconds - self.paused, 1e-9)
        self.seconds, self.images, self.paused = seconds, images, 0.0
        return rate


class ProgressBar(tqdm):
    """A bar that counts steps and shows kimg. It shows nothing without a terminal; see `plain_line`."""

    def __init__(self, total_steps: int, first: int, batch: int):
        self.batch = batch
        looks = {"dynamic_ncols": True, "bar_format": BAR, "file": Forgiving(sys.stderr)}
        super().__init__(total=total_steps, initial=first, disable=not is_terminal(sys.stderr), **looks)

    @property
    def format_dict(self) -> dict[str, Any]:
        values = super().format_dict
        done, total = (f"{steps * self.batch / 1000:.3f}" for steps in (values["n"], values["total"]))
        speed = f"{values['rate'] * self.batch:.1f}" if values["rate"] else "?"
        return values | {"kimg": f"{done:>{len(total)}}/{total}", "speed": speed}


def plain_line(record: dict[str, float], kimg: float) -> str:
    """A record of statistics as a line for a log file."""
    left = max(kimg - record["kimg"], 0) * 1000 / max(record["images_per_second"], 1e-9)
    return (
        f"{record['kimg']:9.3f} / {kimg:g} kimg  G {record['g_loss']:6.3f}  D {record['d_loss']:6.3f}  "
        f"{record['images_per_second']:7.1f} img/s  {_duration(left)} left"
    )


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"

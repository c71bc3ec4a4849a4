"""The training loop: data in, steps, and what is written on the way."""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from tqdm import tqdm

from .config import Options
from .data import Patches
from .images import ImageSource
from .landscapes import LandscapeSource
from .preview import Previewer
from .run_folder import RunFolder
from .trainer import DTYPES, StepLosses, Trainer

FIRST_PREVIEW_SECONDS = 40
FIRST_POOL = 256


class StopRequest:
    """Set by SIGINT or SIGTERM; the loop then ends after the step that it is in."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _handle(self, number: int, frame: object) -> None:
        if self.signal is not None:  # asked twice: the user will not wait for the step
            raise KeyboardInterrupt
        self.signal = number

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Take over both signals while the block runs."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class Clock:
    """Seconds of training, those of earlier parts of the run counted in."""

    earlier: float = 0.0

    def __post_init__(self) -> None:
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.start


class Schedule:
    """Says once an interval that it is time."""

    def __init__(self, interval: float, first: float):
        self.interval = interval
        self.next = first

    def due(self, seconds: float) -> bool:
        """Whether an appointment has passed since the last call."""
        if seconds < self.next:
            return False
        self.next = (seconds // self.interval + 1) * self.interval
        return True


def run(options: Options, folder: RunFolder, source: ImageSource) -> int:
    """Train, from the folder's newest checkpoint if it has one, and return the exit status.

    0 if the run is as long as `options.kimg` asks; 128 + the signal's number if one stopped it, as a shell counts.
    """
    trainer = Trainer(options)
    clock = Clock()
    if latest := folder.latest():
        trainer.load_state(*latest)
        clock.earlier = float(latest[1]["seconds"])
    folder.open(options)
    folder.forget_stats_after(trainer.step_number)
    drawn = hasattr(source, "prepare")
    patches = Patches(
        source,
        options.batch,
        options.crop,
        options.stride_shares,
        options.mirror,
        options.seed,
        first_pool=FIRST_POOL if drawn else 0,
    )
    with StopRequest().listening() as stop, drawing_ahead(source, stop) if drawn else nullcontext():
        Session(trainer, folder, clock).train(patches, stop)
    if stop.signal is None:
        say(f"done: {trainer.images_seen / 1000:g} kimg in {folder.path}")
        return 0
    say(f"stopped at {trainer.images_seen / 1000:g} kimg; the same command goes on from there")
    return 128 + stop.signal


@contextmanager
def drawing_ahead(source: LandscapeSource, stop: StopRequest) -> Iterator[None]:
    """Draw what the cache lacks: the first images while the user waits, the others beside the training."""
    drawing = source.prepare(range(len(source)), workers=os.cpu_count() or 1)
    first, quiet = min(drawing.total, FIRST_POOL), not sys.stderr.isatty()
    if drawing.total:
        say(f"drawing {drawing.total} landscapes into {source.folder}, training starts after {first}")
    try:
        with tqdm(total=first, desc="drawing landscapes", unit="img", leave=False, disable=quiet) as bar:
            while drawing.running and (done := drawing.done) < first and stop.signal is None:
                bar.update(done - bar.n)
                time.sleep(0.2)
        yield
    finally:
        drawing.stop()


class Session:
    """One uninterrupted stretch of a run."""

    def __init__(self, trainer: Trainer, folder: RunFolder, clock: Clock):
        options = trainer.options
        self.trainer, self.folder, self.clock = trainer, folder, clock
        self.total_steps = max(1, -(-round(options.kimg * 1000) // options.batch))
        self.previewer = Previewer(options.res, options.style_features, options.seed, DTYPES[options.precision])
        interval = options.preview_minutes * 60
        now = clock.seconds
        self.previews = Schedule(interval, first=min(FIRST_PREVIEW_SECONDS, interval) if now < interval else now)
        self.checkpoints = Schedule(options.checkpoint_minutes * 60, first=now + options.checkpoint_minutes * 60)
        self.window = Window(clock.seconds, trainer.images_seen)

    def train(self, patches: Patches, stop: StopRequest) -> None:
        """Steps up to the run's length or a signal; the state is saved at the end either way."""
        trainer = self.trainer
        if trainer.step_number == 0:
            self.preview()
        first = trainer.step_number
        with progress_bar(self.total_steps, first, trainer.options.batch) as bar:
            for batch in patches.steps(first):
                if trainer.step_number >= self.total_steps or stop.signal is not None:
                    break
                losses = trainer.step(*batch)
                bar.update()
                self.after_step(losses, bar)
        if trainer.step_number > first:
            self.preview()
            self.save()

    def after_step(self, losses: StepLosses, bar: tqdm) -> None:
        """What the step's number or the clock asks for."""
        if self.trainer.step_number % self.trainer.options.log_every == 0:
            record = self.record(losses)
            self.folder.log(record)
            bar.set_postfix_str(f"G {record['g_loss']:.2f}  D {record['d_loss']:.2f}", refresh=False)
            if bar.disable:
                say(plain_line(record, self.trainer.options.kimg))
        if self.previews.due(self.clock.seconds):
            self.preview()
        if self.checkpoints.due(self.clock.seconds):
            self.save()

    def record(self, losses: StepLosses) -> dict[str, float]:
        """A line of stats.jsonl."""
        trainer = self.trainer
        return {
            "step": trainer.step_number,
            "kimg": trainer.images_seen / 1000,
            "seconds": round(self.clock.seconds, 3),
            "g_loss": losses.g_loss.item(),
            "d_loss": losses.d_loss.item(),
            "r1": trainer.last_r1,
            "real_score": losses.real_score.item(),
            "fake_score": losses.fake_score.item(),
            "images_per_second": round(self.window.rate(self.clock.seconds, trainer.images_seen), 3),
            "peak_memory_mib": round(peak_memory_mib(trainer.device), 1),
        }

    def preview(self) -> None:
        """Write a grid; its time is not counted as training speed."""
        before = self.clock.seconds
        self.folder.preview(self.trainer.images_seen / 1000, self.previewer.render(self.trainer.average))
        self.window.pause(self.clock.seconds - before)

    def save(self) -> None:
        """Write a checkpoint."""
        before = self.clock.seconds
        tensors, metadata = self.trainer.state()
        self.folder.save(self.trainer.step_number, tensors, metadata | {"seconds": f"{before:.3f}"})
        self.window.pause(self.clock.seconds - before)


@dataclass
class Window:
    """Images a second since the last reading."""

    seconds: float
    images: int
    paused: float = 0.0

    def pause(self, seconds: float) -> None:
        """Leave this long out of the next reading."""
        self.paused += seconds

    def rate(self, seconds: float, images: int) -> float:
        """Images a second since the last call."""
        rate = (images - self.images) / max(seconds - self.seconds - self.paused, 1e-9)
        self.seconds, self.images, self.paused = seconds, images, 0.0
        return rate


def progress_bar(total_steps: int, first: int, batch: int) -> tqdm:
    """A bar in kimg on a terminal; elsewhere it is silent and `plain_line` speaks."""
    return tqdm(
        total=total_steps,
        initial=first,
        unit_scale=batch / 1000,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} kimg  {elapsed} gone, {remaining} left{postfix}",
    )


def plain_line(record: dict[str, float], kimg: float) -> str:
    """A statistics record for a log file."""
    left = max(kimg - record["kimg"], 0) * 1000 / max(record["images_per_second"], 1e-9)
    return (
        f"{record['kimg']:9.3f} / {kimg:g} kimg  G {record['g_loss']:6.3f}  D {record['d_loss']:6.3f}  "
        f"{record['images_per_second']:7.1f} img/s  {_duration(left)} left"
    )


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def peak_memory_mib(device: torch.device) -> float:
    """Highest memory so far: the device's, or this process's own on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def say(line: str) -> None:
    """A line for the user, not lost in a pipe's buffer."""
    print(line, flush=True)

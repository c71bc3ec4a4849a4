"""One session of a run, from its start or a checkpoint to its end or a signal: the steps and the files they write."""

import errno
import json
from collections.abc import Callable, Mapping
from contextlib import closing

import torch

from cips_fast.command_line import is_out_of_memory
from cips_fast.console import say, warn
from cips_fast.hardware import PRECISIONS

from .data.patches import Patches
from .failure import DIVERGED, FAILED, RunFailure
from .finite import NotFinite
from .memory import peak_memory_mib
from .options import Options
from .preview import Previewer
from .progress import Clock, ProgressBar, Schedule, Window, plain_line
from .run_folder import RunFolder
from .signals import StopRequest
from .trainer import StepLosses, Trainer

FIRST_PREVIEW_SECONDS = 40
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Takes a record of statistics: a step's numbers by name, None for a number that is not known. May raise OSError.
Logger = Callable[[Mapping[str, float | None]], None]


def total_steps(options: Options) -> int:
    """Steps of the whole run."""
    return max(1, -(-round(options.kimg * 1000) // options.batch))


class Session:
    """Trains until the run has its length or a signal comes. Whatever ends the session, a sound state is saved.

    Attributes:
        loggers: called with the statistics of every `log_every`-th step.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder, clock: Clock, stop: StopRequest):
        options = trainer.options
        self.trainer = trainer
        self.folder = folder
        self.clock = clock
        self.stop = stop
        self.loggers: list[Logger] = [folder.log]
        self.total_steps = total_steps(options)
        self.previewer = Previewer(options.res, options.style_features, options.seed, PRECISIONS[options.precision])
        interval = options.preview_minutes * 60
        now = clock.seconds
        self.previews = Schedule(interval, first=min(FIRST_PREVIEW_SECONDS, interval) if now < interval else now)
        self.checkpoints = Schedule(options.checkpoint_minutes * 60, first=now + options.checkpoint_minutes * 60)
        self.window = Window(clock.seconds, trainer.images_seen)
        self.saved = self.logged = trainer.step_number
        self.cannot_save = False
        self.losses: StepLosses | None = None
        self.warned: set[str] = set()

    def train(self, patches: Patches) -> None:
        """Do all steps that are left. At the end, or when something stops the training, write the last checkpoint.

        Raises:
            RunFailure: a checkpoint cannot be written, or a number is not finite.
        """
        trainer, stop = self.trainer, self.stop
        if trainer.step_number == 0:
            self.preview()
        first = trainer.step_number
        try:
            bar = ProgressBar(self.total_steps, first, trainer.options.batch)
            with bar, closing(patches.steps(first)) as batches:
                while trainer.step_number < self.total_steps and stop.signal is None:
                    self.step(*next(batches))
                    bar.update()
                    self.after_step(bar)
        finally:
            unsaved = trainer.whole and trainer.step_number > self.saved
            if unsaved and not (stop.abandoned or self.cannot_save):
                self.log()
                self.save()
        if trainer.step_number > first:
            self.preview()

    def step(self, images: torch.Tensor, coords: torch.Tensor) -> None:
        """Do one step. If a number is not finite, keep the step's inputs for the user."""
        try:
            self.losses = self.trainer.step(images, coords)
        except NotFinite as error:
            raise RunFailure(self._diverged(error, images, coords), DIVERGED) from None

    def after_step(self, bar: ProgressBar) -> None:
        """Log, save and preview where the step's number or the clock says so. Saving comes before the preview."""
        if self.trainer.step_number % self.trainer.options.log_every == 0:
            self.log(bar)
        if self.checkpoints.due(self.clock.seconds):
            self.save()
        if self.previews.due(self.clock.seconds):
            self.preview()

    def log(self, bar: ProgressBar | None = None) -> None:
        """Give the statistics to the loggers and show them, at most once a step."""
        if self.logged == self.trainer.step_number or self.losses is None:
            return
        self.logged = self.trainer.step_number
        record = self.record(self.losses)
        for logger in self.loggers:
            try:
                logger(record)
            except OSError as error:
                self._warn_once(f"the statistics cannot be written ({error.strerror})")
        if bar is not None:
            bar.set_postfix_str(f"G {record['g_loss']:.2f}  D {record['d_loss']:.2f}", refresh=False)
        if bar is None or bar.disable:
            say(plain_line(record, self.trainer.options.kimg))

    def record(self, losses: StepLosses) -> dict[str, float | None]:
        """The statistics of the last step, as a line of stats.jsonl holds them."""
        trainer = self.trainer
        memory = peak_memory_mib(trainer.device)
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
            "peak_memory_mib": None if memory is None else round(memory, 1),
        }

    def preview(self) -> None:
        """Write a preview grid, unless a signal came. A failure is only a warning; speed does not count the time."""
        before = self.clock.seconds
        try:
            grid = self.previewer.render(self.trainer.average, lambda: self.stop.signal is not None)
            if grid is not None:
                self.folder.preview(self.trainer.images_seen / 1000, grid)
        except OSError as error:
            self._warn_once(f"a preview could not be written into {str(self.folder.samples)!r} ({error.strerror})")
        except (MemoryError, RuntimeError, ValueError, FloatingPointError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            self._warn_once(f"a preview could not be drawn ({(str(error).splitlines() or ['out of memory'])[0]})")
        self.window.pause(self.clock.seconds - before)

    def save(self) -> None:
        """Write a checkpoint; RunFailure if that fails. A second signal is obeyed only after it is written."""
        before = self.clock.seconds
        step = self.trainer.step_number
        with self.stop.finishing():
            self.cannot_save = True
            try:
                tensors, metadata = self.trainer.state()
                self.folder.save(step, tensors, metadata | {"seconds": f"{before:.3f}"})
            except OSError as error:
                raise RunFailure(self._unsaved(error), FAILED) from None
            except NotFinite as error:
                raise RunFailure(f"step {step}: {error}; {self.folder.newest_in_words()}", DIVERGED) from None
            self.saved = step
            self.cannot_save = False
        self.window.pause(self.clock.seconds - before)

    def lost(self) -> str:
        """How many steps are lost if the run ends now, as a part of a message."""
        steps = self.trainer.step_number - self.saved
        what = f"{steps} steps are lost" if steps != 1 else "1 step is lost"
        return f"{what if steps else 'nothing is lost'}; {self.folder.newest_in_words()}"

    def _unsaved(self, error: OSError) -> str:
        once = "there is room" if error.errno in DISK_FULL_ERRORS else "it can be written"
        return (
            f"the checkpoint of step {self.trainer.step_number} could not be written into "
            f"{str(self.folder.checkpoints)!r} ({error.strerror or error}); {self.folder.newest_in_words()}; "
            f"run the same command again once {once}"
        )

    def _diverged(self, error: NotFinite, images: torch.Tensor, coords: torch.Tensor) -> str:
        """Keep the inputs of the failed step, and return the message for the user."""
        step = self.trainer.step_number
        inputs = {"images": images, "coords": coords}
        inputs |= {name: torch.tensor(value, dtype=torch.float64) for name, value in error.losses.items()}
        try:
            kept = f"the step's inputs are in {self.folder.keep_inputs(step, inputs, json.dumps(error.names)).name}"
        except OSError as failure:
            kept = f"the step's inputs could not be kept ({failure.strerror or failure})"
        fp32 = "" if self.trainer.options.precision == "fp32" else " or --precision fp32"
        return (
            f"step {step}: {error}; {self.folder.newest_in_words()}, {kept}; "
            f"try another --out with a lower --g-lr, --d-lr or --r1-gamma{fp32}"
        )

    def _warn_once(self, line: str) -> None:
        if line not in self.warned:
            self.warned.add(line)
            warn(line)

"""A whole run: start or resume it, draw its images, train, and report how it ended."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from cips_fast.command_line import is_out_of_memory
from cips_fast.console import is_terminal, say, say_in_handler, warn

from .data.images import ImageSource
from .data.patches import Patches
from .failure import FAILED, RunFailure
from .options import Options
from .progress import Clock
from .resume import find, settle
from .run_folder import RunFolder
from .session import Session, total_steps
from .signals import Abandoned, StopRequest
from .trainer import Trainer

FIRST_POOL_IMAGES = 256  # drawn before training starts
STOPPING = "stopping: what is trained is being saved; a second signal ends the run at once"


def run(options: Options, folder: RunFolder, source: ImageSource) -> int:
    """Train, from the folder's newest sound checkpoint if it has one, and return the exit status.

    Returns:
        0 if the run is as long as `options.kimg` asks; 128 + the signal's number if one stopped it, as a shell counts.

    Raises:
        OptionError: the folder is in use, cannot be written, or has only damaged checkpoints.
        DataError: an image can no longer be read.
        RunFailure: a checkpoint cannot be written, there is too little memory, or a number is not finite.
    """
    session = None
    with StopRequest(lambda: say_in_handler(STOPPING)).listening() as stop:
        try:
            trainer = Trainer(options)
            with folder.locked():
                folder.check(options)
                clock = _load_newest(trainer, folder)
                if clock is None:
                    say(f"the run in {folder.path} already has {trainer.images_seen / 1000:g} kimg; nothing to do")
                    return 0
                session = Session(trainer, folder, clock, stop)
                with drawing_ahead(source, stop):
                    session.train(_patches(options, source))
        except Abandoned as abandoned:
            say(f"stopped at once; {session.lost() if session else 'nothing is lost'}")
            return abandoned.status
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunFailure(_no_memory(error, folder), FAILED) from error
    if stop.signal is None:
        say(f"done: {trainer.images_seen / 1000:g} kimg in {folder.path}")
        return 0
    say(f"stopped at {trainer.images_seen / 1000:g} kimg; run the same command again to continue")
    return 128 + stop.signal


def _load_newest(trainer: Trainer, folder: RunFolder) -> Clock | None:
    """Load the newest sound checkpoint and open the folder. None, and nothing is changed, if no step is left."""
    found = find(folder, trainer.check_state)
    if found:
        trainer.load_state(*found.state)
        if trainer.step_number >= total_steps(trainer.options):
            return None
    folder.open(trainer.options)
    if found:
        settle(folder, found)
        say(f"resuming {folder.path} at {trainer.images_seen / 1000:g} kimg")
    try:
        folder.forget_stats_after(trainer.step_number)
    except OSError as error:
        warn(f"{str(folder.path / 'stats.jsonl')!r} cannot be rewritten ({error.strerror})")
    return Clock(float(found.state[1]["seconds"]) if found else 0.0)


def _patches(options: Options, source: ImageSource) -> Patches:
    return Patches(
        source,
        options.batch,
        options.crop,
        options.stride_shares,
        options.mirror,
        options.seed,
        first_pool=FIRST_POOL_IMAGES if _is_drawn(source) else 0,
        geometry=options.geometry,
    )


def _is_drawn(source: ImageSource) -> bool:
    """Whether the source draws its images, which are then drawn before they are needed."""
    return hasattr(source, "prepare")


@contextmanager
def drawing_ahead(source: ImageSource, stop: StopRequest) -> Iterator[None]:
    """Draw the images that the cache lacks: the first ones while the user waits, the others during training."""
    if not _is_drawn(source):
        yield
        return
    first = sum(not source.is_cached(index) for index in range(min(FIRST_POOL_IMAGES, len(source))))
    drawing = source.prepare(range(len(source)), workers=os.cpu_count() or 1)
    if drawing.total:
        begin = f"after {first}" if first else "at once"
        say(f"drawing {drawing.total} landscapes into {source.folder}, training starts {begin}")
    try:
        quiet = not (first and is_terminal(sys.stderr))
        with tqdm(total=first, desc="drawing landscapes", unit="img", leave=False, disable=quiet) as bar:
            while drawing.running and (done := drawing.done) < first and stop.signal is None:
                bar.update(done - bar.n)
                time.sleep(0.2)
        yield
    finally:
        drawing.stop()


def _no_memory(error: BaseException, folder: RunFolder) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"out of memory ({reason}); {folder.newest_in_words()}; lower --batch, --crop or --pixel-chunk, "
        "and see --dry-run for what a run needs"
    )

"""The command `python -m train`, from its options to its exit status."""

from collections.abc import Sequence

from cips_fast.command_line import OptionError
from cips_fast.console import complain, prepare_streams, say

from .config import parse
from .data.images import DataError
from .data.sources import open_source
from .dry_run import describe
from .failure import FAILED, RunFailure
from .loop import run
from .options import Options
from .run_folder import RunFolder
from .signals import abandoning


def run_command(argv: Sequence[str] | None = None) -> int:
    """Run the trainer and return the exit status; docs/training.md lists the exit statuses."""
    prepare_streams()
    try:
        options, dry_run = parse(argv)
        say(summary(options))
        folder = RunFolder(options.out)
        if dry_run:
            folder.check(options)
            say(describe(options))
            return 0
        with folder.locked(create=False):
            folder.check(options)
            with abandoning():
                source = open_source(options.data, options.res, geometry=options.geometry)
            return run(options, folder, source)
    except OptionError as error:
        complain(f"error: {error}")
    except DataError as error:
        complain(f"error: --data: {error}")
    except RunFailure as error:
        complain(f"error: {error}")
        return error.status
    return FAILED


def summary(options: Options) -> str:
    """The most important options, in one line."""
    whole = f"{options.crop}x{options.crop} patches of " if options.patches else ""
    images = f"{whole}{options.data} at {options.res}x{options.res}"
    return (
        f"preset {options.preset} on {options.device}: {images}, width {options.width}, "
        f"batch {options.batch}, {options.precision}, {options.kimg:g} kimg, in {options.out}"
    )

"""python -m train: see --help."""

import sys
from collections.abc import Sequence

from cips_fast.console import prepare_streams

from .config import OptionError, Options, parse
from .dry_run import describe
from .images import DataError
from .loop import run, say
from .run_folder import RunFolder
from .sources import open_source


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer; 2 for bad input, with one line on stderr and nothing written."""
    prepare_streams()
    try:
        options, dry_run = parse(argv)
        say(summary(options))
        folder = RunFolder(options.out)
        folder.check(options)
        if dry_run:
            say(describe(options))
            return 0
        return run(options, folder, open_source(options.data, options.res, geometry=options.geometry))
    except OptionError as error:
        print(f"error: {error}", file=sys.stderr)
    except DataError as error:
        print(f"error: --data: {error}", file=sys.stderr)
    return 2


def summary(options: Options) -> str:
    """What was chosen for the user, in one line."""
    whole = f"{options.crop}² patches of " if options.patches else ""
    return (
        f"preset {options.preset} on {options.device}: {whole}{options.data} at {options.res}², width {options.width}, "
        f"batch {options.batch}, {options.precision}, {options.kimg:g} kimg, in {options.out}"
    )


if __name__ == "__main__":
    sys.exit(main())

"""python -m train: see --help.

The first lines of this file import nothing of cips_fast, which imports PyTorch: that takes seconds, during which a
signal already has to end the process without a traceback.
"""

import os
import sys
from collections.abc import Sequence

from . import signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer. The exit status is 2 for bad input, after one line on stderr; nothing is written then."""
    try:
        from .command import run_command

        return run_command(argv)
    except signals.Abandoned as abandoned:
        return abandoned.status


def run_process() -> int:
    """Run the trainer in a process that does nothing else, and return the exit status."""
    signals.quit_at_once()
    take_standard_descriptors()
    from cips_fast import console

    with console.plain_warnings():
        try:
            status = main()
            signals.ignore()
        finally:
            console.finish()
    return status


def take_standard_descriptors() -> None:
    """Open the descriptors 0 to 2 if they are closed, so that no file of the run gets one of them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(run_process())

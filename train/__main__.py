"""python -m train: see --help."""

import sys
from collections.abc import Sequence

from . import output, signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer; 2 for bad input, with one line on stderr and nothing written."""
    try:
        from .command import run_command  # with PyTorch, which takes seconds

        return run_command(argv)
    except signals.Abandoned as abandoned:
        return abandoned.status


if __name__ == "__main__":
    signals.quit_at_once()
    output.prepare_process()
    try:
        status = main()
        signals.ignore()
    finally:
        output.finish()
    sys.exit(status)

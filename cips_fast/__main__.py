"""python -m cips_fast COMMAND: see --help."""

import argparse
import importlib
import pkgutil
import sys
import warnings
from collections.abc import Sequence

from . import commands
from .commands.common import CommandError
from .console import prepare_streams

SHARED = ("common", "output")  # modules of commands that are none


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 2 for bad input, with one line on stderr."""
    prepare_streams()
    parser = argparse.ArgumentParser(prog="python -m cips_fast", description="Render what a generator has learned.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in command_names():
        module = importlib.import_module(f".commands.{name}", __package__)
        formatter = argparse.RawDescriptionHelpFormatter
        one = subparsers.add_parser(name, help=module.HELP, description=module.__doc__, formatter_class=formatter)
        module.add_arguments(one)
        one.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        return args.run(args)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def command_names() -> list[str]:
    """All commands, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(commands.__path__) if module.name not in SHARED)


if __name__ == "__main__":
    sys.exit(main())

"""python -m cips_fast COMMAND: see --help."""

import argparse
import importlib
import pkgutil
import signal
import sys
from collections.abc import Sequence

from . import commands
from .command_line import OptionError, Parser, Terminated, is_out_of_memory, terminable
from .console import StreamError, complain, finish, flush, plain_warnings, prepare_streams


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    It is 2 for bad input, after one line on stderr, and as in shells 130 after Ctrl-C and 143 after SIGTERM.
    """
    prepare_streams()
    try:
        with plain_warnings(), terminable():
            return _run(argv)
    except Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(argv: Sequence[str] | None) -> int:
    """Run a command and return its exit status; a failure is one line on stderr."""
    parser, args = parser_of_all(), None
    try:
        args = _parsed(parser, argv)
        if args.command is None:
            parser.print_help(sys.stderr)
            return 2
        return args.run(args)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        return stop.code
    except (OptionError, FloatingPointError, StreamError, OSError) as error:
        complain(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        complain(f"error: not enough memory{args.less_memory}")
    return 2


def _parsed(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    try:
        return parser.parse_args(argv)
    except SystemExit:  # argparse printed its help, which is still in the buffer, or an error
        flush()
        raise


def parser_of_all() -> Parser:
    """The parser of all commands."""
    parser = Parser(prog="python -m cips_fast", description="Render, project and convert trained generators.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in command_names():
        module = importlib.import_module(f".commands.{name}", __package__)
        formatter = argparse.RawDescriptionHelpFormatter
        one = subparsers.add_parser(name, help=module.HELP, description=module.__doc__, formatter_class=formatter)
        module.add_arguments(one)
        one.set_defaults(run=module.run, less_memory=getattr(module, "LESS_MEMORY", ""))
    return parser


def command_names() -> list[str]:
    """The names of all commands."""
    names = (module.name for module in pkgutil.iter_modules(commands.__path__))
    return sorted(name for name in names if not name.startswith("_"))


if __name__ == "__main__":
    status = main()
    for number in (signal.SIGINT, signal.SIGTERM):  # another one would print a traceback while Python exits
        signal.signal(number, signal.SIG_IGN)
    finish()
    sys.exit(status)

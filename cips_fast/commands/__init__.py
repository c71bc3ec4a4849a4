"""The commands of `python -m cips_fast`, a module each: HELP, add_arguments(parser), run(args) -> exit status."""

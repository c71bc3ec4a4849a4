"""The commands of `python -m cips_fast`, one module for each.

A module has HELP, its line in the list of commands; add_arguments(parser); and run(args), which returns the exit
status. Modules whose names begin with an underscore are shared by the commands.
"""

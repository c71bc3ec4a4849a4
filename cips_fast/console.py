"""Standard output and error of the two command lines, whatever the console can show."""

import sys


def prepare_streams() -> None:
    r"""Let standard output and error write characters that their encoding lacks as escapes, such as \xb2.

    Without this, a file name or a line with a character beyond the console's code page ends the program.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test or a notebook may have replaced it
            stream.reconfigure(errors="backslashreplace")

"""The command line: each command checks its input and calls one function of the library.

What needs torch is imported when a command runs, so that help and errors of the words come at once.
"""

from adadiff.cli.entry import main

__all__ = ["main"]

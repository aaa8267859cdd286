"""The command line: each command checks its input and calls one function of the library.

Torch is imported only when a command runs, so that help and errors in the command line appear at once.
"""

from adadiff.cli.entry import main

__all__ = ["main"]

"""Names of classes that users define in modules of their own."""

from __future__ import annotations

import sys
from pathlib import Path


def module_of(kind: type) -> str:
    """Return the name by which a class's module is imported elsewhere.

    For a class of the script that is running, that is the script's name, not `__main__`.

    Examples:
        >>> from collections import Counter
        >>> module_of(Counter)
        'collections'
    """
    if kind.__module__ != "__main__":
        return kind.__module__
    main = sys.modules["__main__"]
    if main.__spec__ is not None:
        return main.__spec__.name  # python -m
    file = getattr(main, "__file__", None)
    return "__main__" if file is None else Path(file).stem


def is_own(kind: type) -> bool:
    """Return whether a class is one of adadiff's."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]

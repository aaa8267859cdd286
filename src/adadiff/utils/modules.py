"""Registries of classes that users extend in modules of their own, and the names that classes are stored under."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from adadiff.utils.errors import InputError, lookup

Value = TypeVar("Value")


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


def stored_name(kind: type, own: str) -> str:
    """Return the name that a class is stored under: `own` for one of adadiff's, else its module and qualified name."""
    return own if is_own(kind) else f"{module_of(kind)}:{kind.__qualname__}"


def registered(name: str, registry: Mapping[str, Value], what: str) -> Value:
    """Return the entry that a registry holds under a stored name.

    Args:
        name: The stored name.
        registry: Entries by stored name; a class of the user joins it when its module is imported.
        what: What is registered, for the message.

    Raises:
        InputError: If there is none, or its module was not imported.
    """
    module, colon, _ = name.partition(":")
    if colon and name not in registry:
        raise InputError(
            f"its {what} {name} is not one of adadiff's: import {module} before it is loaded, on the command line by "
            f"--import {module}"
        )
    return lookup(name, registry, what)

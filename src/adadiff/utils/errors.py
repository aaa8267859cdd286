"""Errors that the command line prints in one line, and lookups that raise them."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """Invalid input: its one-line message says what was wrong, what was expected and what to do.

    The command line prints only the message and exits with code 2.
    """


class Diverged(RuntimeError):  # noqa: N818 - names the event
    """The loss, the gradients or the weights of a training run are no longer finite; its checkpoints are sound.

    The command line prints the message alone and exits with code 1.
    """


def one_line(error: BaseException) -> str:
    """Return an error's text in one line; the name of its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def lookup(name: str, table: Mapping[str, Value], kind: str) -> Value:
    """Return the table's entry of that name; raise InputError with the closest names if there is none."""
    if name in table:
        return table[name]
    raise InputError(f"there is no {kind} {name!r}: {suggestion(name, table)}")


def suggestion(name: str, names: Iterable[str]) -> str:
    """Suggest the names closest to a misspelt one, or all names if none is close."""
    close = difflib.get_close_matches(name, choices := list(names), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(choices)}"


def imported(name: str) -> Any:
    """Import the object named `"package.module:name"`; raise InputError if that fails."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise InputError(f"{name!r} cannot be imported: write package.module:name")
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no {attribute!r} in a module {module!r}: {error}") from error

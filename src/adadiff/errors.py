"""Errors whose message alone the command line prints, and look-ups that raise them."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """Bad input: the message says what was wrong, what was expected and what to do, in one line.

    The command line prints the message alone and exits with code 2.
    """


class Diverged(RuntimeError):  # noqa: N818 - what happened to a training
    """The loss, the gradients or the weights are no longer finite; the last checkpoint is from before.

    The command line prints the message alone and exits with code 1.
    """


def lookup(name: str, table: Mapping[str, Value], kind: str) -> Value:
    """The table's entry of that name; InputError, with the nearest names, where there is none."""
    if name in table:
        return table[name]
    raise InputError(f"there is no {kind} {name!r}: {suggestion(name, table)}")


def suggestion(name: str, names: Iterable[str]) -> str:
    """Which of the names could have been meant: the nearest ones, or else all."""
    near = difflib.get_close_matches(name, known := list(names), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(known)}"


def imported(name: str) -> Any:
    """What `"package.module:name"` stands for; InputError where it cannot be imported."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise InputError(f"{name!r} cannot be imported: write package.module:name")
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no {attribute!r} in a module {module!r}: {error}") from error

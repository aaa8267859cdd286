"""Look-up of classes by name or index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from adadiff.utils.errors import InputError, lookup, suggestion
from adadiff.utils.ranges import plain, shown


def class_indices(
    classes: Iterable[int | str], num_classes: int, names: Sequence[str] | None, null_class: int | None = None
) -> list[int]:
    """Convert the classes that a user requests to rows of the class table.

    Args:
        classes: Names (str), if the classes have names, or indices (int, also of numpy or torch). A string such as "1"
            is always a name, never an index.
        num_classes: Size of the class table, including a null class.
        names: Names of classes 0, 1, ..., if they have names.
        null_class: The class that stands for "no class", which cannot be requested.

    Raises:
        InputError: If a class does not exist; the message suggests the closest names.
    """
    indices = {name: k for k, name in enumerate(names or ())}
    return [
        _index_of_name(entry, indices) if isinstance(entry, str) else _checked_index(entry, num_classes, null_class)
        for entry in classes
    ]


def _index_of_name(name: str, indices: dict[str, int]) -> int:
    if not indices:
        raise InputError(
            f"the model's classes have no names, so there is no {name!r}: give indices, as ints or with --class-index"
        )
    if name not in indices and name.isdecimal():
        raise InputError(
            f"there is no class named {name!r} ({suggestion(name, indices)}): to request a class by its index, give an "
            f"int, or --class-index {name}"
        )
    return lookup(name, indices, "class")


def _checked_index(entry: Any, num_classes: int, null_class: int | None) -> int:
    index = plain(entry)
    if isinstance(index, bool) or not isinstance(index, int):
        raise InputError(f"{shown(entry)} is not a class: give a name (str) or an index (int)")
    allowed = [k for k in range(num_classes) if k != null_class]
    if index == null_class:
        raise InputError(
            f"class {index} is the null class, which cannot be requested: choose from {allowed[0]} to {allowed[-1]}"
        )
    if not 0 <= index < num_classes:
        raise InputError(f"there is no class {index}: choose from {allowed[0]} to {allowed[-1]}")
    return index

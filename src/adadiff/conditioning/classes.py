"""Classes by name or by number."""

from __future__ import annotations

from collections.abc import Sequence

from adadiff.errors import InputError, lookup


def class_indices(classes: Sequence[int | str], num_classes: int, names: Sequence[str] | None) -> list[int]:
    """Rows of the class table.

    Args:
        classes: Numbers, 0..num_classes - 1, or names.
        num_classes: Size of the class table, a null class counted.
        names: Names of classes 0, 1, ..., where they have names.

    Raises:
        InputError: If there is no such class; the nearest names are named.
    """
    numbers = {name: k for k, name in enumerate(names or ())}
    indices = []
    for entry in classes:
        number = entry if isinstance(entry, int) else int(entry) if entry.isdecimal() else None
        if number is None and not numbers:
            raise InputError(f"the model's classes have no names: in place of {entry!r} give 0 to {num_classes - 1}")
        index = lookup(str(entry), numbers, "class") if number is None else number
        if not 0 <= index < num_classes:
            raise InputError(f"there is no class {index}: the model's classes are 0 to {num_classes - 1}")
        indices.append(index)
    return indices

"""Names of a package that are imported when they are first used (PEP 562), so that the package itself loads at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package whose public names are imported on first use.

    Args:
        package: The package's `__name__`.
        homes: Names by the module that defines them.

    Returns:
        The two functions, for the package to bind under these names.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def module_getattr(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)  # found there from now on
        return value

    def module_dir() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return module_getattr, module_dir

"""The API reference covers every package that has public names; `make docs` checks its links and its navigation."""

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "src/adadiff"


def names_of(init: Path) -> list[str]:
    """The names in a package's `__all__`, without importing it."""
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


PUBLIC = sorted(init.parent.relative_to(PACKAGE.parent) for init in PACKAGE.rglob("__init__.py") if names_of(init))


@pytest.mark.parametrize("package", PUBLIC, ids=str)
def test_each_package_with_public_names_has_a_page_of_the_reference(package):
    page = REPOSITORY / "docs/api" / f"{package.name}.md"
    assert f"::: {'.'.join(package.parts)}\n" in page.read_text()

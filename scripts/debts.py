"""List what the code still owes to its own rules: long files, long functions, circles and upward imports.

Upward imports and circles are the ones that the contracts in pyproject.toml excuse; `lint-imports`, run before, proves
that there are no others. The listing is information for now: once it is empty, it becomes an error.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from importlinter.api import read_configuration

FOLDERS = ("src", "benchmarks", "scripts", "tests")
FILE_LINES = 350
FUNCTION_LINES = 60  # without the docstring


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count a function's lines from `def` to its end, without its docstring."""
    lines = _span(function)
    return lines if ast.get_docstring(function) is None else lines - _span(function.body[0])


def long_parts(path: Path) -> Iterator[str]:
    """Name the file if it is too long, and each of its functions that is, one line each."""
    source = path.read_text()
    length = len(source.splitlines())
    if length > FILE_LINES:
        yield f"{path}: {length} lines (limit {FILE_LINES})"
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = function_lines(node)
        if lines > FUNCTION_LINES:
            yield f"{path}:{node.lineno}: {node.name} has {lines} lines (limit {FUNCTION_LINES})"


def excused_imports() -> Iterator[str]:
    """Name every import that a contract excuses, one line each."""
    for contract in read_configuration()["contracts_options"]:
        for excused in contract.get("ignore_imports", ()):
            yield f"{excused} (against: {contract['name']})"


def main() -> None:
    debts = [debt for folder in FOLDERS for path in sorted(Path(folder).rglob("*.py")) for debt in long_parts(path)]
    debts.extend(excused_imports())
    print("\n".join(debts) if debts else "no debts")


def _span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


if __name__ == "__main__":
    main()

"""Check that no file and no function is too long; print those that are, and exit with 1 then."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("src", "examples", "benchmarks", "scripts", "tests")
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


def main() -> None:
    too_long = [part for folder in FOLDERS for path in sorted(Path(folder).rglob("*.py")) for part in long_parts(path)]
    print("\n".join(too_long) or f"no file over {FILE_LINES} lines, no function over {FUNCTION_LINES}")
    sys.exit(1 if too_long else 0)


def _span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


if __name__ == "__main__":
    main()

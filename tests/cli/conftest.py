"""What the tests of the commands share."""

from __future__ import annotations

from pathlib import Path

from adadiff.cli import main

TINY = "--model.patch-size 4 --model.width 16 --model.depth 3 --model.num-heads 2 --mixed-precision no --batch-size 4"


def run(*words: str) -> None:
    """Run a command in this process; texts are split at spaces."""
    main([word for text in words for word in text.split()])


def files(folder: Path) -> dict[Path, bytes]:
    """The content of every file in the folder, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

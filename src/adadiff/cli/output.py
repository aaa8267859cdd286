"""The console that the commands print to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from adadiff.data import ImageData

console = Console(soft_wrap=True)


def print_description(images: ImageData) -> None:
    """Print the number, split and classes of the images, and what was left out."""
    for line in images.describe():
        console.print(line, markup=False, highlight=False)

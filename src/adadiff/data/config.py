"""Which images to load, as a typed configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

DIGITS = "digits"


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are prepared."""

    source: Annotated[str, arg(aliases=["--data"])] = DIGITS
    """"digits" (built in), a parquet file or a folder of them, a folder of images (flat, or one folder per class), or
    a hub name."""
    split: str | None = None
    """Split of the source; by default train, or the only one available."""
    size: int = 32
    """Side of the square images, in pixels; images are resized to cover the square, then cropped at the centre."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB."""
    flip: bool = True
    """Mirror every other training image, at random."""
    on_error: Literal["stop", "skip"] = "stop"
    """stop: an unreadable image or empty cell is an error that names it; skip: check all items first and leave such
    ones out."""
    image_column: str = "image"
    """Name of the column of images."""
    label_column: str | None = "label"
    """Name of the column of class labels, if there is one."""
    caption_column: str | None = "text"
    """Name of the column of captions, if there is one."""

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
    """"digits" (built in), a parquet file or a folder of them, a folder of images (flat, or one folder a class), or a
    hub name."""
    split: str | None = None
    """Which split of the source; by default train, or the only one there is."""
    size: int = 32
    """Side of the square images, in pixels: resized to cover it, then cropped at the centre."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB."""
    flip: bool = True
    """Mirror every other training image, at random."""
    on_error: Literal["stop", "skip"] = "stop"
    """An unreadable image or empty cell stops with its name; or all are looked at first and such ones left out."""
    image_column: str = "image"
    """Column of the images."""
    label_column: str | None = "label"
    """Column of the class labels, if there is one."""
    caption_column: str | None = "text"
    """Column of the captions, if there is one."""

"""Which images to load, as a typed configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

DIGITS = "digits"


@dataclass(frozen=True)
class DataConfig:
    """The source of the images and their preprocessing."""

    source: Annotated[str, arg(aliases=["--data"])] = DIGITS
    """Source of images: digits (built in), parquet file or folder of them, folder of images or of classes, hub name."""
    split: str | None = None
    """Split of the source; by default train, or the only split."""
    size: int = 32
    """Side of the square images, in pixels; images are resized to cover the square, then cropped at the centre."""
    channels: Literal[1, 3] = 3
    """Number of channels: 1 for greyscale, 3 for RGB."""
    flip: bool = True
    """Mirror each training image with probability 1/2."""
    on_error: Literal["stop", "skip"] = "stop"
    """Treatment of unreadable images and empty cells: stop with an error, or check all items first and skip them."""
    image_column: str = "image"
    """Column of the images."""
    label_column: str | None = "label"
    """Column of the class labels, if there is one."""
    caption_column: str | None = "text"
    """Column of the captions, if there is one."""

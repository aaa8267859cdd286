"""Grids of images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffusers.utils import make_image_grid
from PIL import Image, ImageOps

MARGIN = 2  # pixels of white around each image


def image_grid(images: Sequence[Image.Image], columns: int | None = None, tile: int = 64) -> Image.Image:
    """Arrange images in a grid, row by row, each at least `tile` pixels wide.

    Args:
        images: Images of equal size.
        columns: Number of images per row; by default the grid is about square.
        tile: Least width of an image in the grid, in pixels; smaller images are enlarged by an integer factor.
    """
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    factor = max(1, tile // images[0].width)
    width, height = images[0].width * factor, images[0].height * factor
    tiles = []
    for image in images:
        enlarged = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        tiles.append(ImageOps.expand(enlarged, border=MARGIN, fill="white"))
    blank = Image.new("RGB", tiles[0].size, "white")
    return make_image_grid(tiles + [blank] * (rows * columns - len(tiles)), rows=rows, cols=columns)

"""Conversion of images in any of Pillow's modes to 8-bit grey or RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

DEEP_GREY = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Modes whose values Pillow clips at 255, instead of scaling them, when it converts them to 8 bits."""

TIFF_BITS, TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0


def is_grey(image: Image.Image) -> bool:
    """Return whether the image's mode is grey."""
    return image.mode in ("1", "L", "LA", "La", *DEEP_GREY)


def check_header(image: Image.Image) -> None:
    """Raise the error that `flatten` would raise for the image's EXIF data or its range of values.

    Only images in modes whose values may have any range are decoded.
    """
    if image.mode in ("I", "F"):
        flatten(image, channels=1)
    if "exif" in image.info:
        exif = image.getexif()
        if exif.get(ExifTags.Base.Orientation, 1) != 1:
            exif.tobytes()  # `exif_transpose` writes the EXIF data again


def flatten(image: Image.Image, channels: int) -> Image.Image:
    """Turn an image upright and convert it to 8-bit grey or RGB, with transparent parts white.

    Args:
        image: An image as Pillow opens it.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ValueError: If the values are outside the range of the mode, so that the value of white is unknown.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode in DEEP_GREY:
        upright = _eight_bits(upright, getattr(image, "tag_v2", {}))
    colour = upright.info.get("transparency")
    if isinstance(colour, tuple) and max(colour) > 255:  # of 16-bit RGB, which Pillow reads as 8 bits
        upright.info["transparency"] = tuple(value >> 8 for value in colour)
    if upright.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return upright.convert("L" if channels == 1 else "RGB")


def _eight_bits(image: Image.Image, tags: Any) -> Image.Image:
    """Scale grey images of more than 8 bits to 8 bits.

    White is 65535 for integers, also in 32-bit files, since Pillow and other programs store 16-bit values in them;
    4095 in 12-bit TIFF files, which Pillow does not scale; and 1 for floats.
    """
    values = np.asarray(image)
    white = 1.0 if image.mode == "F" else 4095.0 if tags.get(TIFF_BITS) == (12,) else 65535.0
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):  # NaN compares as false
        raise ValueError(f"its values are from {low:g} to {high:g}, not between 0 and {white:g}")
    transparency = image.info.get("transparency")
    alpha = None if transparency is None else values != transparency
    if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow inverts only 8-bit ones itself
        values = white - values
    grey = Image.fromarray(_scaled(values, 255 / white))
    if alpha is not None:
        grey.putalpha(Image.fromarray(_scaled(alpha, 255)))
    return grey


def _scaled(values: NDArray[Any], factor: float) -> NDArray[np.uint8]:
    return np.rint(values.astype(np.float64) * factor).astype(np.uint8)

"""Image files from the pixels that the engine hands out."""

from __future__ import annotations

import base64
import io

from PIL import Image
from torch import Tensor

from adadiff.serving.protocol import ImageFormat


def image_file(pixels: Tensor, kind: ImageFormat = "png", quality: int = 100) -> bytes:
    r"""Encode one image, (1 or 3, height, width) in [0, 1], as a file; `quality`, 0 to 100, is for JPEG and WebP.

    Examples:
        >>> import torch
        >>> image_file(torch.zeros(3, 8, 8))[:4]
        b'\x89PNG'
    """
    values = (pixels.detach().float().cpu().permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
    image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    stream = io.BytesIO()
    settings = {} if kind == "png" else {"quality": quality}
    image.save(stream, kind.upper(), **settings)
    return stream.getvalue()


def as_base64(pixels: Tensor, kind: ImageFormat = "png", quality: int = 100) -> str:
    """Encode one image as `image_file` does, and the file in base64."""
    return base64.b64encode(image_file(pixels, kind, quality)).decode("ascii")

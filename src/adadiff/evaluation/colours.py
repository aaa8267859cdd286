"""Colours of images: saturation, and brightness with two colour differences."""

from __future__ import annotations

import torch
from torch import Tensor

RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""Rows: brightness, and the differences orange - blue and purple - green, of the NTSC standard."""


def saturation(images: Tensor) -> Tensor:
    """Compute the saturation of HSV, (max - min) / max of the channels, 0 where black.

    Args:
        images: (batch, channels, height, width) in [0, 1].

    Returns:
        (batch, height, width) in [0, 1].
    """
    high, low = images.amax(1), images.amin(1)
    return (high - low) / high.clamp(min=torch.finfo(images.dtype).tiny)

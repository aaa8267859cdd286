"""The check that sampled images are finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adadiff.utils.errors import InputError


class NonFiniteImagesError(InputError):
    """Sampled images are NaN or infinite.

    Args:
        message: The error in one line.
        positions: Positions of these images in the batch, counted from 0.
    """

    def __init__(self, message: str, positions: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.positions = tuple(positions)


def require_finite_images(images: Tensor, computed_in: torch.dtype | None = None) -> None:
    """Raise NonFiniteImagesError if some images of a batch are NaN or infinite.

    Args:
        images: The images, (batch, channels, height, width), or samples of another kind, (batch, ...).
        computed_in: Precision that the model computes in, if it is known.
    """
    broken = ~images.isfinite().flatten(1).all(1)
    if not broken.any():
        return
    positions = broken.nonzero().flatten().tolist()
    named = ", ".join(str(position) for position in positions[:5])
    more = ", ..." if len(positions) > 5 else ""
    reduced = computed_in in (torch.float16, torch.bfloat16)
    cause = f"the likely cause is that the model computes in {computed_in}; " if reduced else ""
    raise NonFiniteImagesError(
        f"{len(positions)} of {len(images)} images are NaN or infinite (at positions {named}{more}): {cause}"
        f"try float32, another scheduler or more steps",
        positions,
    )

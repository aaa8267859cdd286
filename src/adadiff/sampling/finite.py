"""The check that sampled images are finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adadiff.utils.errors import InputError


class NonFiniteImagesError(InputError):
    """Sampled images are NaN or infinite.

    Args:
        positions: Positions of these images in the batch, counted from 0.
        batch_size: Number of images in the batch.
        computed_in: Precision that the model computes in, if it is known.
    """

    def __init__(self, positions: Sequence[int], batch_size: int, computed_in: torch.dtype | None = None) -> None:
        self.positions = tuple(positions)
        named = ", ".join(str(position) for position in self.positions[:5])
        more = ", ..." if len(self.positions) > 5 else ""
        reduced = computed_in in (torch.float16, torch.bfloat16)
        cause = f"the likely cause is that the model computes in {computed_in}; " if reduced else ""
        super().__init__(
            f"{len(self.positions)} of {batch_size} images are NaN or infinite (at positions {named}{more}): {cause}"
            f"try float32, another scheduler or more steps"
        )


def require_finite_images(images: Tensor, computed_in: torch.dtype | None = None) -> None:
    """Raise NonFiniteImagesError if some images of a batch are NaN or infinite.

    Args:
        images: The images, (batch, channels, height, width), or samples of another kind, (batch, ...).
        computed_in: Precision that the model computes in, if it is known.
    """
    broken = ~images.isfinite().flatten(1).all(1)
    if broken.any():
        raise NonFiniteImagesError(broken.nonzero().flatten().tolist(), len(images), computed_in)

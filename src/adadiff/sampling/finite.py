"""The check that sampled images are finite."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adadiff.utils.errors import InputError


class NonFiniteImagesError(InputError):
    """Sampled images are NaN or infinite.

    Args:
        positions: Positions of these images in the batch, counted from 0.
        batch_size: Number of images in the batch.
    """

    def __init__(self, positions: Sequence[int], batch_size: int) -> None:
        self.positions = tuple(positions)
        named = ", ".join(str(position) for position in self.positions[:5])
        more = ", ..." if len(self.positions) > 5 else ""
        super().__init__(
            f"{len(self.positions)} of {batch_size} images are NaN or infinite (at positions {named}{more}): "
            f"try float32, another scheduler or more steps"
        )


def require_finite_images(images: Tensor) -> None:
    """Raise NonFiniteImagesError if some images of a batch, (batch, channels, height, width), are NaN or infinite."""
    broken = ~images.isfinite().flatten(1).all(1)
    if broken.any():
        raise NonFiniteImagesError(broken.nonzero().flatten().tolist(), len(images))

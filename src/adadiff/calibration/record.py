"""Recording: what every exit would have predicted along sampling runs of the full model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from adadiff.calibration.cache import TensorCache
from adadiff.calibration.sampling import Sampling

LONGEST_GAP = 8  # most steps from a full step to an exit that its corrections are used for
WINDOW = 3 * LONGEST_GAP + 3  # covers the three full steps before any such exit


@dataclass(frozen=True)
class ExitRecord:
    """Every exit's difference from the full prediction, and its uncertainty, at every step of full sampling runs.

    With guidance, an exit's prediction is the guided one with both predictions of the pair exiting at that layer, and
    its uncertainty is the larger of the two, since tied pairs exit only when both may.

    Args:
        products: Products of the differences at a step and k steps earlier, averaged over pixels, (steps, `WINDOW`,
            layers + 1, layers + 1, samples): k along the second axis, after layers 0..N at the later step along the
            third and at the earlier one along the fourth. Layer 0 predicts nothing, and so differs by the full
            prediction. 0 at the last layer, and if there is no step so early.
        uncertainties: Mean uncertainties in [0, 1], (steps, layers, samples).
        images: Images of the full model, decoded if it samples latents, (samples, channels, height, width) in [0, 1].
    """

    products: Tensor
    uncertainties: Tensor
    images: Tensor

    def __post_init__(self) -> None:
        assert self.errors.shape == self.uncertainties.shape

    @property
    def errors(self) -> Tensor:
        """Mean squared difference from the full prediction after layers 1..N, (steps, layers, samples)."""
        return self.products[:, 0].diagonal(dim1=1, dim2=2).movedim(-1, 1)[:, 1:]

    def select(self, samples: Tensor) -> ExitRecord:
        """Return the record of a subset of the samples; `samples` holds their positions, (kept,) int64."""
        return ExitRecord(
            self.products[..., samples],
            self.uncertainties[..., samples],
            self.images[samples],
        )


def record_exits(
    sampling: Sampling, samples: int, batch_size: int = 32, cache: TensorCache | None = None
) -> ExitRecord:
    """Sample with the full model and record every exit's prediction error and uncertainty.

    Args:
        sampling: What is sampled with.
        samples: Number of samples: those numbered 0, 1, ...
        batch_size: Samples per batch.
        cache: Cache for the recorded batches.
    """
    cache, parts = cache or TensorCache(), []
    with tqdm(total=samples, desc="recording every exit", unit="image") as progress:
        for first in range(0, samples, batch_size):
            numbers = range(first, min(first + batch_size, samples))
            recorded = cache.compute_once(f"every exit of {numbers}", partial(sampling.record, numbers))
            parts.append(ExitRecord(**recorded))
            progress.update(len(numbers))
    return ExitRecord(
        torch.cat([part.products for part in parts], dim=4),
        torch.cat([part.uncertainties for part in parts], dim=2),
        torch.cat([part.images for part in parts]),
    )

"""Trials: sample with a policy and measure the losses of its images against the full model's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from adadiff.calibration.cache import TensorCache, Tensors
from adadiff.calibration.metric import Metric, losses_by
from adadiff.calibration.result import Point
from adadiff.calibration.sampling import Batch, Sampling
from adadiff.policies import ExitPolicy, NeverExit
from adadiff.utils.timing import median_seconds

TIMED_IMAGES = 16


class Trials:
    """Samples with policies and compares the images with the full model's.

    Args:
        sampling: What is sampled with.
        batch_size: Samples per batch.
        metric: The loss of a pair of images.
        cache: Cache for the losses.
    """

    def __init__(self, sampling: Sampling, batch_size: int, metric: Metric, cache: TensorCache | None = None) -> None:
        self.sampling, self.batch_size, self.metric = sampling, batch_size, metric
        self.cache = cache or TensorCache()
        self._full: dict[int, Tensor] = {}

    def cache_full_images(self, images: Tensor) -> None:
        """Store images 0, 1, ... of the full model, so that they are not sampled again."""
        self._full.update(enumerate(images))

    def full_images(self, indices: Sequence[int]) -> Tensor:
        """Return the full model's images of these indices, sampled unless they are cached."""
        missing = [k for k in indices if k not in self._full]
        if missing:
            images, _ = self._images(NeverExit(), missing, f"full model, {len(missing)} samples")
            self._full.update(zip(missing, images, strict=True))
        return torch.stack([self._full[k] for k in indices])

    def sample(self, kind: str, policy: ExitPolicy, indices: Sequence[int]) -> Point:
        """Sample the images of these indices with a policy and with the full model, unless cached, and compare them."""

        def measure() -> Tensors:
            full = self.full_images(indices)
            images, compute = self._images(policy, indices, f"{kind}, {len(indices)} samples")
            losses = losses_by(self.metric, full, images)
            return {"losses": losses, "compute": torch.tensor(compute, dtype=torch.double)}

        measured = self.cache.compute_once(f"{policy} on {indices}", measure)
        return Point(kind, policy, measured["compute"].item(), measured["losses"].numpy())

    def sample_fewer_steps(self, steps: int, fewer: Sampling, indices: Sequence[int]) -> Point:
        """Sample these images with fewer steps and all layers, and compare them; all else is as in this sampling."""
        kind = f"{steps} steps"

        def measure() -> Tensors:
            full = self.full_images(indices)
            batches = sampled_batches(fewer, NeverExit(), indices, self.batch_size, f"{kind}, {len(indices)} samples")
            one = self.sampling.batch(NeverExit(), indices[:1])  # what an image costs with all steps
            compute = sum(batch.flops for batch in batches) / (one.full_flops * len(indices))
            losses = losses_by(self.metric, full, torch.cat([batch.images for batch in batches]))
            return {"losses": losses, "compute": torch.tensor(compute, dtype=torch.double)}

        measured = self.cache.compute_once(f"{kind} on {indices}", measure)
        return Point(kind, NeverExit(), measured["compute"].item(), measured["losses"].numpy())

    def repeat_error(self, indices: Sequence[int]) -> float:
        """Return the mean loss of the full model against itself at batch size 1, which is due to rounding."""
        full = self.full_images(indices)
        again = [self.sampling.batch(NeverExit(), [k]).images for k in indices]
        return losses_by(self.metric, full, torch.cat(again)).mean().item()

    def speedup(self, policy: ExitPolicy) -> float:
        """Measure the speedup: time of the full model over time with the policy, timed alternately."""
        indices = range(min(TIMED_IMAGES, self.batch_size))
        seconds = median_seconds(
            {
                "full": lambda: self.sampling.batch(NeverExit(), indices),
                "adaptive": lambda: self.sampling.batch(policy, indices),
            },
            3,
        )
        return seconds["full"] / seconds["adaptive"]

    def _images(self, policy: ExitPolicy, indices: Sequence[int], description: str) -> tuple[Tensor, float]:
        batches = sampled_batches(self.sampling, policy, indices, self.batch_size, description)
        compute = sum(batch.flops for batch in batches) / sum(batch.full_flops for batch in batches)
        return torch.cat([batch.images for batch in batches]), compute


def sampled_batches(
    sampling: Sampling, policy: ExitPolicy, indices: Sequence[int], batch_size: int, description: str
) -> list[Batch]:
    """Sample the images of these indices in batches, under a progress bar of that description."""
    batches = []
    with tqdm(total=len(indices), desc=description, unit="image", leave=False) as progress:
        for first in range(0, len(indices), batch_size):
            batches.append(sampling.batch(policy, indices[first : first + batch_size]))
            progress.update(len(batches[-1].images))
    return batches

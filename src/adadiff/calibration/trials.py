"""Trials: sample with a policy and measure the losses of its images against the full model's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from adadiff.calibration.cache import TensorCache, Tensors
from adadiff.calibration.metric import Metric, losses_by
from adadiff.calibration.result import Point
from adadiff.policies import ExitPolicy, NeverExit
from adadiff.runtime.trace import Trace
from adadiff.sampling import AdaptivePipeline, Conditions, sample_seeded
from adadiff.utils.timing import median_seconds

TIMED_IMAGES = 16


class Trials:
    """Samples with policies and compares the images with the full model's.

    Args:
        pipeline: The model and the scheduler.
        steps: Number of sampling steps.
        conditions: Conditions of the samples, and the guidance.
        seed: Seed of the noise.
        batch_size: Samples per batch.
        metric: The loss of a pair of images.
        cache: Cache for the losses.
    """

    def __init__(
        self,
        pipeline: AdaptivePipeline,
        steps: int,
        conditions: Conditions,
        seed: int,
        batch_size: int,
        metric: Metric,
        cache: TensorCache | None = None,
    ) -> None:
        self.pipeline, self.steps, self.conditions = pipeline, steps, conditions
        self.seed, self.batch_size, self.metric = seed, batch_size, metric
        self.cache = cache or TensorCache()
        self._full: dict[int, Tensor] = {}

    def cache_full_images(self, images: Tensor) -> None:
        """Store images 0, 1, ... of the full model, so that they are not sampled again."""
        self._full.update(enumerate(images))

    def sample(self, kind: str, policy: ExitPolicy, indices: Sequence[int]) -> Point:
        """Sample the images of these indices with a policy and with the full model, unless cached, and compare them."""

        def measure() -> Tensors:
            full = self._full_images(indices)
            images, compute = self._images(policy, indices, f"{kind}, {len(indices)} samples")
            losses = losses_by(self.metric, full, images)
            return {"losses": losses, "compute": torch.tensor(compute, dtype=torch.double)}

        measured = self.cache.compute_once(f"{policy} on {indices}", measure)
        return Point(kind, policy, measured["compute"].item(), measured["losses"].numpy())

    def repeat_error(self, indices: Sequence[int]) -> float:
        """Return the mean loss of the full model against itself at batch size 1, which is due to rounding."""
        full = self._full_images(indices)
        again = [self._batch(NeverExit(), [k])[0] for k in indices]
        return losses_by(self.metric, full, torch.cat(again)).mean().item()

    def speedup(self, policy: ExitPolicy) -> float:
        """Measure the speedup: time of the full model over time with the policy, timed alternately."""
        indices = range(TIMED_IMAGES)
        seconds = median_seconds(
            {"full": lambda: self._batch(NeverExit(), indices), "adaptive": lambda: self._batch(policy, indices)}, 3
        )
        return seconds["full"] / seconds["adaptive"]

    def _full_images(self, indices: Sequence[int]) -> Tensor:
        missing = [k for k in indices if k not in self._full]
        if missing:
            images, _ = self._images(NeverExit(), missing, f"full model, {len(missing)} samples")
            self._full.update(zip(missing, images, strict=True))
        return torch.stack([self._full[k] for k in indices])

    def _images(self, policy: ExitPolicy, indices: Sequence[int], description: str) -> tuple[Tensor, float]:
        parts, flops, predictions = [], 0, 0
        with tqdm(total=len(indices), desc=description, unit="image", leave=False) as progress:
            for first in range(0, len(indices), self.batch_size):
                batch = indices[first : first + self.batch_size]
                images, trace = self._batch(policy, batch)
                parts.append(images)
                flops, predictions = flops + int(trace.flops.sum()), predictions + trace.predictions
                progress.update(len(batch))
        return torch.cat(parts), flops / (predictions * self.pipeline.transformer.part_flops.full)

    def _batch(self, policy: ExitPolicy, indices: Sequence[int]) -> tuple[Tensor, Trace]:
        output = sample_seeded(self.pipeline, indices, self.steps, policy, self.seed, self.conditions)
        return output.images.float().cpu(), output.trace

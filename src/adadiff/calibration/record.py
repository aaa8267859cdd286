"""Recording: what every exit would have predicted along sampling runs of the full model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from adadiff.baselines.base import Baseline, Inputs, Trajectory, full_output
from adadiff.calibration.cache import TensorCache, Tensors
from adadiff.exits import AdaptiveModel, AdaptiveOutput
from adadiff.policies import NeverExit
from adadiff.sampling import AdaDiffPipeline, Conditions, Guidance, sample_seeded

LONGEST_GAP = 8  # most steps from a full step to an exit that its corrections are used for
WINDOW = 2 * LONGEST_GAP + 2  # covers the two full steps before any such exit


@dataclass(frozen=True)
class ExitRecord:
    """Every exit's difference from the full prediction, and its uncertainty, at every step of full sampling runs.

    With guidance, an exit's prediction is the guided one with both predictions of the pair exiting at that layer, and
    its uncertainty is the larger of the two, since tied pairs exit only when both may.

    Args:
        products: Products of the differences at a step and k steps earlier, averaged over pixels, (steps, `WINDOW`,
            layers, samples) with k along the second axis; 0 at the last layer, and if there is no step so early.
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
        """Mean squared difference from the full prediction, (steps, layers, samples)."""
        return self.products[:, 0]

    def select(self, samples: Tensor) -> ExitRecord:
        """Return the record of a subset of the samples; `samples` holds their positions, (kept,) int64."""
        return ExitRecord(self.products[..., samples], self.uncertainties[..., samples], self.images[samples])


def record_exits(
    pipeline: AdaDiffPipeline,
    samples: int,
    steps: int,
    conditions: Conditions,
    seed: int,
    batch_size: int = 32,
    kept: TensorCache | None = None,
) -> ExitRecord:
    """Sample with the full model and record every exit's prediction error and uncertainty.

    Args:
        pipeline: The model and the scheduler.
        samples: Number of samples; sample k depends only on the seed and k.
        steps: Number of sampling steps.
        conditions: Conditions of the samples, and the guidance.
        seed: Seed of the noise.
        batch_size: Samples per batch.
        kept: Cache for the recorded batches.
    """
    kept = kept or TensorCache()
    recorder = _Recorder(pipeline.transformer, conditions.guidance)
    recording = pipeline.with_parts(transformer=recorder)

    def record_batch(numbers: range) -> Tensors:
        recorder.products, recorder.uncertainties = [], []
        output = sample_seeded(recording, numbers, steps, NeverExit(), seed, conditions)
        products, uncertainties = torch.stack(recorder.products), torch.stack(recorder.uncertainties)
        return {"products": products, "uncertainties": uncertainties, "images": output.images.float().cpu()}

    parts = []
    with tqdm(total=samples, desc="recording every exit", unit="image") as progress:
        for first in range(0, samples, batch_size):
            numbers = range(first, min(first + batch_size, samples))
            parts.append(ExitRecord(**kept.once(f"every exit of {numbers}", partial(record_batch, numbers))))
            progress.update(len(numbers))
    return ExitRecord(
        torch.cat([part.products for part in parts], dim=3),
        torch.cat([part.uncertainties for part in parts], dim=2),
        torch.cat([part.images for part in parts]),
    )


class _Recorder(Baseline):
    """Predicts with the full model and records what each exit would have predicted."""

    def __init__(self, model: AdaptiveModel, guidance: Guidance) -> None:
        super().__init__(model)
        self.guidance = guidance
        self.products: list[Tensor] = []
        self.uncertainties: list[Tensor] = []

    def settings(self) -> dict[str, Any]:
        return {}

    def trajectory(self) -> Trajectory:
        return _Recording(self)


class _Recording(Trajectory):
    def __init__(self, recorder: _Recorder) -> None:
        self.recorder = recorder
        self.differences: list[Tensor] = []  # newest step first, each (layers, batch, channels, height, width)

    def predict(self, inputs: Inputs, step: int, tied_halves: bool) -> AdaptiveOutput:
        model, guidance = self.recorder.model, self.recorder.guidance
        predictions, uncertainties = model.all_exits(*inputs)
        combined, doubt = predictions.float(), uncertainties.float().flatten(2).mean(2)
        if tied_halves:
            combined = guidance.combine(*combined.chunk(2, dim=1))
            doubt = torch.maximum(*doubt.chunk(2, dim=1))
        difference = combined - combined[-1]
        self.differences = [difference, *self.differences[: WINDOW - 1]]
        products = difference.new_zeros(WINDOW, *difference.shape[:2])
        for k, earlier in enumerate(self.differences):
            products[k] = (difference * earlier).flatten(2).mean(2)
        self.recorder.products.append(products.cpu())
        self.recorder.uncertainties.append(doubt.cpu())
        batch = (len(inputs[0]),)
        layers, flops = torch.full(batch, model.depth), torch.full(batch, model.part_flops.full)
        return full_output(predictions[-1], layers, flops, model.depth)

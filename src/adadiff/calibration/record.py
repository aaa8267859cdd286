"""What every exit would have said along samplings of the full model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from adadiff.calibration.kept import Kept, Tensors
from adadiff.exits import AdaptiveModel, AdaptiveOutput, NeverExit
from adadiff.rivals.base import Inputs, Rival, Trajectory, full_output
from adadiff.sampling import AdaDiffPipeline, Conditions, Guidance, sample_numbered

LONGEST_GAP = 8  # steps from a full one to the last that its corrections serve
WINDOW = 2 * LONGEST_GAP + 2  # so that the two full steps before lie in it


@dataclass(frozen=True)
class ExitRecord:
    """Every exit's difference from the full prediction, and its uncertainty, at every step of full samplings.

    With guidance, the predictions are the guided ones, both halves leaving at that layer, and the uncertainty is the
    larger of the two: tied pairs leave when both may.

    Args:
        products: Of the differences at a step and k steps before, the mean over the pixels, (steps, `WINDOW`, layers,
            samples), k along the second axis; 0 at the last layer, and where there is no step so long before.
        uncertainties: In [0, 1], (steps, layers, samples).
        images: Of the full model, (samples, channels, height, width) in [0, 1], or latents' decodings.
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
        """Of some samples alone."""
        return ExitRecord(self.products[..., samples], self.uncertainties[..., samples], self.images[samples])


def record_exits(
    pipeline: AdaDiffPipeline,
    samples: int,
    steps: int,
    conditions: Conditions,
    seed: int,
    batch_size: int = 32,
    kept: Kept | None = None,
) -> ExitRecord:
    """Sample with the full model, and look at every exit on the way.

    Args:
        pipeline: The model and the scheduler.
        samples: How many; sample k depends on the seed and k alone.
        steps: Sampling steps.
        conditions: What the samples show, and the guidance.
        seed: Of the noise.
        batch_size: Samples at once.
        kept: Where batches are kept, and found.
    """
    kept = kept or Kept()
    recorder = _Recorder(pipeline.transformer, conditions.guidance)
    recording = pipeline.with_parts(transformer=recorder)

    def record_batch(numbers: range) -> Tensors:
        recorder.products, recorder.uncertainties = [], []
        output = sample_numbered(recording, numbers, steps, NeverExit(), seed, conditions)
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


class _Recorder(Rival):
    """Predicts as the full model does, and notes what each exit would have predicted."""

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
        self.differences: list[Tensor] = []  # of this step and those before it, (layers, batch, ...) each

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

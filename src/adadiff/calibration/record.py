"""Recording: what every exit would have predicted along sampling runs of the full model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from adadiff.calibration.cache import TensorCache, Tensors
from adadiff.exits import AdaptiveModel
from adadiff.policies import ExitPolicy, NeverExit
from adadiff.runtime import Denoiser, Inputs, PartFlops, Prediction, Session
from adadiff.sampling import AdaptivePipeline, Conditions, Guidance, sample_seeded

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
    pipeline: AdaptivePipeline,
    samples: int,
    steps: int,
    conditions: Conditions,
    seed: int,
    batch_size: int = 32,
    cache: TensorCache | None = None,
) -> ExitRecord:
    """Sample with the full model and record every exit's prediction error and uncertainty.

    Args:
        pipeline: The model and the scheduler.
        samples: Number of samples; sample k depends only on the seed and k.
        steps: Number of sampling steps.
        conditions: Conditions of the samples, and the guidance.
        seed: Seed of the noise.
        batch_size: Samples per batch.
        cache: Cache for the recorded batches.
    """
    cache = cache or TensorCache()
    conditions = replace(conditions, guidance=replace(conditions.guidance, tied=True))
    recorder = _ExitRecorder(pipeline.transformer, conditions.guidance)
    recording = pipeline.with_denoiser(recorder)

    def record_batch(numbers: range) -> Tensors:
        recorder.measured.clear()
        output = sample_seeded(recording, numbers, steps, NeverExit(), seed, conditions)
        products, uncertainties = recorder.by_step()
        return {"products": products, "uncertainties": uncertainties, "images": output.images.float().cpu()}

    parts = []
    with tqdm(total=samples, desc="recording every exit", unit="image") as progress:
        for first in range(0, samples, batch_size):
            numbers = range(first, min(first + batch_size, samples))
            parts.append(ExitRecord(**cache.compute_once(f"every exit of {numbers}", partial(record_batch, numbers))))
            progress.update(len(numbers))
    return ExitRecord(
        torch.cat([part.products for part in parts], dim=3),
        torch.cat([part.uncertainties for part in parts], dim=2),
        torch.cat([part.images for part in parts]),
    )


@dataclass(frozen=True)
class _Measurement:
    """What one call measured, of each sample: its step, (samples,), and the two tensors of `ExitRecord` there."""

    steps: Tensor
    products: Tensor
    uncertainties: Tensor


class _ExitRecorder(Denoiser):
    """Predicts with the full model and measures what each exit would have predicted."""

    def __init__(self, model: AdaptiveModel, guidance: Guidance) -> None:
        self.model, self.guidance = model, guidance
        self.measured: list[_Measurement] = []

    @property
    def depth(self) -> int:
        return self.model.depth

    @property
    def part_flops(self) -> PartFlops:
        return self.model.part_flops

    def session(self, rows: int) -> _RecordingSession:
        return _RecordingSession(self, rows)

    def identity(self) -> dict[str, Any]:
        return {"recorder": self.model.identity()}

    def by_step(self) -> tuple[Tensor, Tensor]:
        """Return products, (steps, `WINDOW`, layers, samples), and uncertainties, (steps, layers, samples)."""
        steps = 1 + max(int(call.steps.max()) for call in self.measured)
        first = self.measured[0]
        products = first.products.new_zeros(steps, *first.products.shape)
        uncertainties = first.uncertainties.new_zeros(steps, *first.uncertainties.shape)
        for call in self.measured:
            samples = torch.arange(len(call.steps))
            products[call.steps, :, :, samples] = call.products.permute(2, 0, 1)
            uncertainties[call.steps, :, samples] = call.uncertainties.T
        return products, uncertainties


class _RecordingSession(Session):
    """Remembers, by row, how every exit differed from the full prediction at the last `WINDOW` steps.

    A guided pair's differences are kept in the row of its conditional prediction.
    """

    denoiser: _ExitRecorder

    def _predict(
        self, inputs: Inputs, steps: Tensor, policy: ExitPolicy, ties: Tensor | None, return_uncertainties: bool
    ) -> Prediction:
        model, guidance = self.denoiser.model, self.denoiser.guidance
        predictions, uncertainties = model.all_exits(inputs.sample, inputs.timestep, **inputs.conditions)
        combined, uncertainty_of_pair = predictions.float(), uncertainties.float().flatten(2).mean(2)
        rows = torch.arange(len(inputs))
        if ties is not None:  # guided: pairs of rows, the conditional one first
            rows, unconditional = ties.argsort(stable=True).view(-1, 2).T
            combined = guidance.combine(combined[:, rows], combined[:, unconditional])
            uncertainty_of_pair = torch.maximum(uncertainty_of_pair[:, rows], uncertainty_of_pair[:, unconditional])
        products = self._products(rows, steps[rows], combined - combined[-1])
        self.denoiser.measured.append(_Measurement(steps[rows], products.cpu(), uncertainty_of_pair.cpu()))
        layers = torch.full((len(inputs),), model.depth)
        unknown = torch.full((len(inputs), model.depth), torch.nan)
        return Prediction(predictions[-1], layers, unknown, torch.full_like(layers, model.part_flops.full))

    def _products(self, rows: Tensor, steps: Tensor, difference: Tensor) -> Tensor:
        """Multiply differences, (layers, rows, ...), by the row's earlier ones: (`WINDOW`, layers, rows).

        A row's differences at step s are kept in slot s modulo `WINDOW` of its memory.
        """
        difference = difference.transpose(0, 1)  # (rows, layers, channels, height, width)
        stored = self.memory.tensor("differences", (WINDOW, *difference.shape[1:]), device=difference.device)
        step_of = self.memory.tensor("steps", (WINDOW,), torch.int64, empty=-1)
        stored[rows, steps % WINDOW], step_of[rows, steps % WINDOW] = difference, steps
        products = difference.new_zeros(WINDOW, *difference.shape[:2])
        for k in range(WINDOW):
            slots = (steps - k) % WINDOW
            known = step_of[rows, slots] == steps - k
            if known.any():
                here = known.to(difference.device)
                product = difference[here] * stored[rows[known], slots[known]]
                products[k, here] = product.flatten(2).mean(2)
        return products.transpose(1, 2)

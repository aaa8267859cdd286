"""Calibrating our own models: sampling with them by number, and recording all of their exits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adadiff.calibration.cache import Tensors
from adadiff.calibration.influence import step_influence
from adadiff.calibration.record import WINDOW
from adadiff.calibration.sampling import Batch, Sampling
from adadiff.exits import AdaptiveModel
from adadiff.policies import ExitPolicy, NeverExit
from adadiff.policies.stored import CalibrationContext
from adadiff.runtime import Denoiser, Inputs, InternalWeights, PartFlops, Prediction, Session
from adadiff.sampling import UNCONDITIONAL, AdaptivePipeline, Conditions, Guidance, sample_seeded
from adadiff.sampling.folder import sampling_request
from adadiff.sampling.plan import PlanContext, SamplingPlan
from adadiff.sampling.schedulers import scheduler_name, times_of
from adadiff.utils.files import weights_checksum


@dataclass(frozen=True)
class AdaptiveSampling(Sampling):
    """Samples with a model of our own.

    Args:
        pipeline: The model and the scheduler.
        steps: Number of sampling steps.
        conditions: Conditions of the samples, and the guidance.
        seed: Seed of the noise.
    """

    pipeline: AdaptivePipeline
    steps: int
    conditions: Conditions = UNCONDITIONAL
    seed: int = 0

    @property
    def parts(self) -> PartFlops:
        return self.pipeline.transformer.part_flops

    @property
    def evaluations(self) -> int:
        return len(times_of(self.pipeline.scheduler, self.steps))

    def with_steps(self, steps: int) -> AdaptiveSampling:
        return replace(self, steps=steps)

    def batch(self, policy: ExitPolicy, numbers: Sequence[int]) -> Batch:
        output = sample_seeded(self.pipeline, numbers, self.steps, policy, self.seed, self.conditions)
        trace = output.trace
        return Batch(output.images.float().cpu(), int(trace.flops.sum()), trace.predictions * self.parts.full)

    def record(self, numbers: Sequence[int]) -> Tensors:
        conditions = replace(self.conditions, guidance=replace(self.conditions.guidance, tied=True))
        recorder = _ExitRecorder(self.pipeline.transformer, conditions.guidance)
        recording = self.pipeline.with_denoiser(recorder)
        output = sample_seeded(recording, numbers, self.steps, NeverExit(), self.seed, conditions)
        products, uncertainties = recorder.by_step()
        return {
            "products": products,
            "uncertainties": uncertainties,
            "images": output.images.float().cpu(),
        }

    def settings(self) -> dict[str, Any]:
        return sampling_request(self.pipeline, self.steps, NeverExit(), self.seed, self.conditions)

    def context(self) -> CalibrationContext:
        model = self.pipeline.transformer
        return PlanContext.of(
            SamplingPlan(self.steps, guidance=self.conditions.guidance),
            weights_checksum(Path(model.config.get("_name_or_path", ""))),
            model.depth,
            scheduler_name(self.pipeline.scheduler),
            self.evaluations,
        )

    def coefficients(self) -> Tensor:
        return step_influence(self.pipeline.scheduler, self.steps)

    def predictions(self, evaluations: int) -> Tensor:
        guidance = self.conditions.guidance
        return torch.tensor([1 + guidance.applies(step, evaluations) for step in range(evaluations)])


@dataclass(frozen=True)
class _Measurement:
    """What one call measured of each sample.

    Args:
        steps: Its step, (samples,) int64.
        products: Products of its differences from the full prediction after layers 0..N with earlier ones, (`WINDOW`,
            layers + 1, layers + 1, samples).
        uncertainties: Its mean uncertainties, (layers, samples).
    """

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
        """Return products and uncertainties as an `ExitRecord` holds them."""
        steps = 1 + max(int(call.steps.max()) for call in self.measured)
        first = self.measured[0]
        products = first.products.new_zeros(steps, *first.products.shape)
        uncertainties = first.uncertainties.new_zeros(steps, *first.uncertainties.shape)
        for call in self.measured:
            samples = torch.arange(len(call.steps))
            products[call.steps, :, :, :, samples] = call.products.movedim(-1, 0)
            uncertainties[call.steps, :, samples] = call.uncertainties.T
        return products, uncertainties


class _RecordingSession(Session):
    """Remembers, by row, how every exit differed from the full prediction at the last `WINDOW` steps.

    A guided pair's differences are kept in the row of its conditional prediction.
    """

    denoiser: _ExitRecorder

    def _predict(
        self,
        inputs: Inputs,
        steps: Tensor,
        policy: ExitPolicy,
        ties: Tensor | None,
        return_uncertainties: bool,
        internal: InternalWeights | None,
    ) -> Prediction:
        model, guidance = self.denoiser.model, self.denoiser.guidance
        predictions, uncertainties = model.all_exits(inputs.sample, inputs.timestep, **inputs.conditions)
        if internal is not None:  # full predictions are led away from early ones, and early exits corrected to these
            weights = internal.weights.to(predictions).view(-1, *[1] * (predictions.dim() - 2))
            predictions[-1] += weights * (predictions[-1] - predictions[internal.layer - 1])
        combined, uncertainty_of_pair = predictions.float(), uncertainties.float().flatten(2).mean(2)
        rows = torch.arange(len(inputs))
        if ties is not None:  # guided: pairs of rows, the conditional one first
            rows, unconditional = ties.argsort(stable=True).view(-1, 2).T
            combined = guidance.combine(combined[:, rows], combined[:, unconditional])
            uncertainty_of_pair = torch.maximum(uncertainty_of_pair[:, rows], uncertainty_of_pair[:, unconditional])
        after_layer_0 = torch.zeros_like(combined[:1])  # nothing is predicted there
        differences = torch.cat([after_layer_0, combined]) - combined[-1]  # (layers + 1, rows, channels, height, width)
        products = self._products(rows, steps[rows], differences)
        self.denoiser.measured.append(_Measurement(steps[rows], products.cpu(), uncertainty_of_pair.cpu()))
        layers = torch.full((len(inputs),), model.depth)
        unknown = torch.full((len(inputs), model.depth), torch.nan)
        return Prediction(predictions[-1], layers, unknown, torch.full_like(layers, model.part_flops.full))

    def _products(self, rows: Tensor, steps: Tensor, difference: Tensor) -> Tensor:
        """Multiply differences, (layers, rows, ...), by the row's earlier ones: (`WINDOW`, layers, layers, rows).

        A row's differences at step s are kept in slot s modulo `WINDOW` of its memory.
        """
        difference = difference.transpose(0, 1)  # (rows, layers, channels, height, width)
        stored = self.memory.tensor("differences", (WINDOW, *difference.shape[1:]), device=difference.device)
        step_of = self.memory.tensor("steps", (WINDOW,), torch.int64, empty=-1)
        stored[rows, steps % WINDOW], step_of[rows, steps % WINDOW] = difference, steps
        flat = difference.flatten(2)  # (rows, layers, values)
        products = flat.new_zeros(WINDOW, *flat.shape[:2], flat.shape[1])
        for k in range(WINDOW):
            slots = (steps - k) % WINDOW
            known = step_of[rows, slots] == steps - k
            if known.any():
                here = known.to(difference.device)
                earlier = stored[rows[known], slots[known]].flatten(2)
                products[k, here] = flat[here] @ earlier.transpose(1, 2) / flat.shape[2]
        return products.movedim(1, -1)

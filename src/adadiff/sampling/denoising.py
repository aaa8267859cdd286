"""The steps from noise to images: guided predictions, taken by a diffusers scheduler, and their trace."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from adadiff.policies import ExitPolicy
from adadiff.runtime import Denoiser, Inputs, InternalWeights, Prediction, Trace, TraceRecorder
from adadiff.sampling.guidance import Guidance
from adadiff.sampling.schedulers import noise_arguments


class Denoising:
    """Samples a batch of images step by step.

    Args:
        denoiser: Predicts the steps.
        dtype: Precision of the denoiser's inputs.
        scheduler: At the start of the sampling, as `started` returns it.
        policy: The exit policy.
        images: Number of images.
        conditions: The model's keyword arguments for what each image shall show, (images, ...) each.
        null_conditions: Those of the unconditional predictions of guidance; empty where nothing is guided.
        guidance: How strongly, and at which steps, predictions are guided.
        generator: Source of the noise that stochastic schedulers add.
        return_uncertainties: Whether to run every estimator, for the trace.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        dtype: torch.dtype,
        scheduler: SchedulerMixin,
        policy: ExitPolicy,
        images: int,
        conditions: dict[str, Tensor],
        null_conditions: dict[str, Tensor],
        guidance: Guidance,
        generator: torch.Generator | list[torch.Generator] | None,
        return_uncertainties: bool = False,
    ) -> None:
        self.denoiser, self.dtype, self.scheduler, self.policy = denoiser, dtype, scheduler, policy
        self.images, self.guidance, self.return_uncertainties = images, guidance, return_uncertainties
        self.conditions = conditions
        self.pairs = {name: torch.cat([conditions[name], null_conditions[name]]) for name in null_conditions}
        self.noise: dict[str, Any] = noise_arguments(scheduler, generator)
        self.session = denoiser.session(images)
        self.recorder = TraceRecorder(self.timesteps.tolist(), images, denoiser.depth, denoiser.part_flops.full)

    @property
    def timesteps(self) -> Tensor:
        """The time of every evaluation of the model, (evaluations,)."""
        return self.scheduler.timesteps

    @property
    def trace(self) -> Trace:
        """Which layer each sample exited after, at the steps taken so far, of which there is at least one."""
        return self.recorder.trace

    def take(self, step: int, sample: Tensor) -> Tensor:
        """Take a step, counted from 0: return the sample, (images, channels, height, width), at the next time."""
        timestep = self.timesteps[step]
        noisy = self.scheduler.scale_model_input(sample, timestep).to(self.dtype)
        guided = self.guidance.applies(step, len(self.timesteps))
        prediction = self._guided(step, noisy, timestep) if guided else self._unguided(step, noisy, timestep)
        return self.scheduler.step(prediction.to(sample.dtype), timestep, sample, **self.noise).prev_sample

    def _unguided(self, step: int, noisy: Tensor, timestep: Tensor) -> Tensor:
        if len(self.session) > self.images:  # guidance has ended: the unconditional rows are finished
            self.session = self.session.select(torch.arange(self.images))
        inputs = Inputs(noisy, timestep.to(noisy.device).expand(self.images), self.conditions)
        output = self._predict(inputs, step)
        self.recorder.record(torch.full((self.images,), step), output)
        return output.sample

    def _guided(self, step: int, noisy: Tensor, timestep: Tensor) -> Tensor:
        if len(self.session) == self.images:  # guidance begins: the unconditional rows are new
            self.session = self.session.join(self.denoiser.session(self.images))
        pairs = 2 * self.images  # the conditional predictions, then the unconditional ones
        inputs = Inputs(torch.cat([noisy, noisy]), timestep.to(noisy.device).expand(pairs), self.pairs)
        ties = torch.arange(self.images).repeat(2) if self.guidance.tied else None
        output = self._predict(inputs, step, ties)
        conditional = output.select(slice(self.images))
        unconditional = output.select(slice(self.images, None))
        self.recorder.record(torch.full((self.images,), step), conditional, unconditional)
        return self.guidance.combine(conditional.sample, unconditional.sample)

    def _predict(self, inputs: Inputs, step: int, ties: Tensor | None = None) -> Prediction:
        steps, leading = torch.full((len(inputs),), step), self.guidance.internal
        internal = None
        if leading is not None:
            internal = InternalWeights(leading.layer, leading.weights(steps, len(self.timesteps)))
        return self.session.predict(inputs, steps, self.policy, ties, self.return_uncertainties, internal)

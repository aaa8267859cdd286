"""The steps from noise to images: the model's guided predictions, taken by a diffusers scheduler, and their trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from adadiff.exits import AdaptiveModel, AdaptiveOutput
from adadiff.runtime.trace import Trace
from adadiff.sampling.guidance import Guidance
from adadiff.sampling.schedulers import noise_arguments


class Denoising:
    """One sampling, step by step.

    Args:
        model: The denoiser.
        predict: Predicts the steps of this sampling: `model.trajectory()` with its policy.
        scheduler: At the start of the sampling, as `started` returns it.
        conditions: The model's keyword arguments for what each image shall show, (batch, ...) each.
        null_conditions: Those of the unconditional half of guidance; empty where nothing is guided.
        guidance: How strongly, and at which steps, predictions are guided.
        generator: Source of the noise that stochastic schedulers add.
    """

    def __init__(
        self,
        model: AdaptiveModel,
        predict: Callable[..., AdaptiveOutput],
        scheduler: SchedulerMixin,
        conditions: dict[str, Tensor],
        null_conditions: dict[str, Tensor],
        guidance: Guidance,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> None:
        self.model, self.predict, self.scheduler, self.guidance = model, predict, scheduler, guidance
        self.conditions = conditions
        self.pairs = {name: torch.cat([conditions[name], null_conditions[name]]) for name in null_conditions}
        self.noise: dict[str, Any] = noise_arguments(scheduler, generator)
        self._steps: list[dict[str, Tensor]] = []

    @property
    def timesteps(self) -> Tensor:
        """The time of every evaluation of the model, (evaluations,)."""
        return self.scheduler.timesteps

    def take(self, step: int, sample: Tensor) -> Tensor:
        """Take a step, counted from 0: the sample at the next time, (batch, channels, height, width) as it is given."""
        timestep, guided = self.timesteps[step], self.guidance.applies(step, len(self.timesteps))
        noisy = self.scheduler.scale_model_input(sample, timestep).to(self.model.dtype)
        output = self.predict(
            torch.cat([noisy, noisy]) if guided else noisy,  # a guided pair: conditional half, unconditional half
            timestep,
            **(self.pairs if guided else self.conditions),
            step=step,
            tied_halves=guided and self.guidance.tied,
        )
        self._steps.append(_trace_of_step(output, guided))
        prediction = self.guidance.combine(*output.sample.chunk(2)) if guided else output.sample
        return self.scheduler.step(prediction.to(sample.dtype), timestep, sample, **self.noise).prev_sample

    @property
    def trace(self) -> Trace:
        """Which layer each sample left after, at the steps taken so far, of which there is at least one."""
        return Trace(
            **{name: torch.stack([step[name] for step in self._steps]) for name in self._steps[0]},
            depth=self.model.depth,
            full_flops=self.model.part_flops.full,
            timesteps=tuple(self.timesteps[: len(self._steps)].tolist()),
        )


def _trace_of_step(output: AdaptiveOutput, guided: bool) -> dict[str, Tensor]:
    """Split one step's output into the trace's tensors; a guided batch is a conditional and an unconditional half."""
    halves = 2 if guided else 1
    exit_layers, uncertainties = output.exit_layers.chunk(halves), output.uncertainties.chunk(halves)
    return {
        "exit_layers": exit_layers[0],
        "uncertainties": uncertainties[0],
        "unconditional_exit_layers": exit_layers[1] if guided else torch.zeros_like(exit_layers[0]),
        "unconditional_uncertainties": uncertainties[1] if guided else torch.full_like(uncertainties[0], torch.nan),
        "flops": output.flops.unflatten(0, (halves, -1)).sum(0),
    }

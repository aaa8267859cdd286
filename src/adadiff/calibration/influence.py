"""How far an error in one step's prediction moves the final image."""

from __future__ import annotations

import inspect

import torch
from diffusers import SchedulerMixin
from torch import Tensor


def step_influence(scheduler: SchedulerMixin, num_steps: int) -> Tensor:
    """The squared derivative of the final sample by each step's prediction, (steps,) float64.

    A scheduler's steps are linear in the sample and in the predictions (clipping apart), so a prediction of 1 among
    zeros, taken through all steps, gives its coefficient, for any scheduler. That the network would answer to a moved
    sample is left out.

    Args:
        scheduler: Any of diffusers; it is copied.
        num_steps: Sampling steps.
    """
    nothing = _final_sample(scheduler, num_steps, nudged=None)
    nudged = torch.stack([_final_sample(scheduler, num_steps, step) for step in range(num_steps)])
    return (nudged - nothing).square()


def _final_sample(scheduler: SchedulerMixin, num_steps: int, nudged: int | None) -> Tensor:
    """What zero becomes, one prediction being 1 and the others zero; noise is the same at every call."""
    twin = type(scheduler).from_config(scheduler.config, clip_sample=False, thresholding=False)
    twin.set_timesteps(num_steps)
    noise = {"generator": torch.Generator().manual_seed(0)} if _takes_generator(twin) else {}
    sample = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for step, timestep in enumerate(twin.timesteps):
        twin.scale_model_input(sample, timestep)
        prediction = torch.full_like(sample, 1.0 if step == nudged else 0.0)
        sample = twin.step(prediction, timestep, sample, **noise).prev_sample
    return sample.squeeze()


def _takes_generator(scheduler: SchedulerMixin) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters

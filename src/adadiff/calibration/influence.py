"""How far an error in one step's prediction moves the final image."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor
from tqdm import tqdm

from adadiff.calibration.record import ExitRecord
from adadiff.exits import ScheduleExit
from adadiff.sampling import AdaDiffPipeline, Conditions, sample_numbered
from adadiff.sampling.schedulers import noise_arguments, started, times_of

PROBED_STEPS = 20
PROBED_SAMPLES = 16


def measured_influence(
    pipeline: AdaDiffPipeline, record: ExitRecord, sampling_steps: int, conditions: Conditions, seed: int
) -> Tensor:
    """How far the final image moves, squared, over the squared error of a step's prediction, (steps,) float64.

    Steps are evaluations of the model here, of which some schedulers make more than one a sampling step.

    One step after the other leaves after the middle layer, all others running in full, so the network's answers to the
    moved sample are in it. They matter: on CIFAR-10 with a guidance scale of 6, an error of the first step counts
    fourteen times what the scheduler's coefficients say. Of more than `PROBED_STEPS` steps some are probed,
    and what they amplify the coefficients by is interpolated.

    Args:
        pipeline: The model and the scheduler.
        record: Of full samplings by it.
        sampling_steps: Of the record, as the scheduler counts them.
        conditions: What the record's samples show.
        seed: Of the record's noise.
    """
    steps, depth = len(record.errors), pipeline.transformer.depth
    coefficients, layer = step_influence(pipeline.scheduler, sampling_steps), (depth + 1) // 2
    samples = min(PROBED_SAMPLES, len(record.images))
    probed = np.unique(np.linspace(0, steps - 1, min(steps, PROBED_STEPS)).round().astype(int))
    amplification = []
    for probe in tqdm(probed, desc="influence of every step", unit="step"):
        policy = ScheduleExit(tuple(layer if step == probe else depth for step in range(steps)))
        images = (
            sample_numbered(pipeline, range(samples), sampling_steps, policy, seed, conditions).images.float().cpu()
        )
        moved = 4 * (images - record.images[:samples]).square().mean()  # images are half of samples
        expected = coefficients[probe] * record.errors[probe, layer - 1, :samples].mean()
        amplification.append((moved / expected).item() if expected > 0 else 1.0)
    return coefficients * torch.from_numpy(np.interp(np.arange(steps), probed, amplification))


def step_influence(scheduler: SchedulerMixin, num_steps: int) -> Tensor:
    """The squared derivative of the final sample by each evaluation's prediction, (evaluations,) float64.

    A scheduler's steps are linear in the sample and in the predictions (clipping apart), so a prediction of 1 among
    zeros, taken through all steps, gives its coefficient, for any scheduler. That the network would answer to a moved
    sample is left out; see `measured_influence`.

    Args:
        scheduler: Any of diffusers; it is copied.
        num_steps: Sampling steps.
    """
    nothing = _final_sample(scheduler, num_steps, nudged=None)
    evaluations = len(times_of(scheduler, num_steps))
    nudged = torch.stack([_final_sample(scheduler, num_steps, step) for step in range(evaluations)])
    return (nudged - nothing).square()


def _final_sample(scheduler: SchedulerMixin, num_steps: int, nudged: int | None) -> Tensor:
    """What zero becomes, one prediction being 1 and the others zero; noise is the same at every call."""
    twin = type(scheduler).from_config(scheduler.config, clip_sample=False, thresholding=False)
    twin = started(twin, num_steps)
    noise = noise_arguments(twin, torch.Generator().manual_seed(0))
    sample = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for step, timestep in enumerate(twin.timesteps):
        twin.scale_model_input(sample, timestep)
        prediction = torch.full_like(sample, 1.0 if step == nudged else 0.0)
        sample = twin.step(prediction, timestep, sample, **noise).prev_sample
    return sample.squeeze()

"""The choice of the number of steps: of several that cost the same, the one that comes nearest to very many steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adadiff.calibration.cache import TensorCache
from adadiff.calibration.kinds import CorrectedSchedule
from adadiff.calibration.metric import normalised_squared_error
from adadiff.calibration.record import record_exits
from adadiff.calibration.result import Point
from adadiff.calibration.sampling import Sampling
from adadiff.calibration.search import Search
from adadiff.calibration.trials import Trials, sampled_batches
from adadiff.policies import ExitPolicy, NeverExit
from adadiff.utils.errors import InputError

logger = logging.getLogger(__name__)

SHARES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3)  # of the layers' FLOPs, each with so many more steps
ALL_LAYERS = "all layers"
CALIBRATED = 16  # samples that each policy is calibrated on
UNRELATED = 1.0  # error from which images have little in common; that of images of other noise is 2
COMPARED = 32  # samples that are compared with those of the reference


@dataclass(frozen=True)
class StepsTrial(Point):
    """A number of steps, compared with the reference.

    Its compute is relative to all layers at the default number of steps. Losses are squared errors over the variance
    of the reference, and not limited.

    Args:
        steps: Number of sampling steps.
    """

    steps: int


@dataclass(frozen=True)
class StepsChoice:
    """Numbers of steps that cost the same, compared with a sampling with very many.

    Args:
        reference_steps: Number of steps of the reference.
        default: All layers at the default number of steps.
        trials: All layers at few steps, and corrected schedules at more.
    """

    reference_steps: int
    default: StepsTrial
    trials: tuple[StepsTrial, ...]

    @property
    def best(self) -> StepsTrial:
        """The trial with the least error."""
        return min(self.trials, key=lambda trial: trial.error)


def choose_steps(
    sampling: Sampling, compute: float, reference_steps: int, batch_size: int = 32, refine: bool = True
) -> StepsChoice:
    """Try numbers of steps that cost the same, each with the schedule of exits that its share of the compute allows.

    Errors are against the same sampler with very many steps from the same noise, so that those of too few steps count
    as those of early exits do. With a scheduler that adds noise of its own they mean nothing, and a warning says so.

    Args:
        sampling: Samples with the model, in its default number of steps.
        compute: FLOPs to spend, over those of all layers at the default number of steps, in (0, 1).
        reference_steps: Number of steps of the reference, above the default number.
        batch_size: Samples per batch.
        refine: Fit the schedules to their own images, as the calibration that follows does.

    Raises:
        InputError: If the reference has no more steps than the default, or the compute is below that of one step.

    Examples:
        >>> from adadiff import AdaDiffPipeline
        >>> from adadiff.calibration.adaptive import AdaptiveSampling
        >>> pipe = AdaDiffPipeline.from_pretrained("digits")
        >>> choice = choose_steps(AdaptiveSampling(pipe, steps=8), compute=0.5, reference_steps=50, refine=False)
        >>> [trial.steps for trial in choice.trials]
        [4, 5, 6, 8, 10, 13]
    """
    steps = sampling.context().steps
    if reference_steps <= steps:
        raise InputError(f"reference_steps is {reference_steps}: it must be above the number of steps, {steps}")
    if compute * steps < 1:
        raise InputError(f"compute is {compute}: one step with all layers takes {1 / steps:.3g}; choose more")
    reference, _ = _sampled(sampling.with_steps(reference_steps), NeverExit(), reference_steps, batch_size)
    images, full_flops = _sampled(sampling, NeverExit(), steps, batch_size)
    variance = reference.var(0, correction=0).mean()

    def losses_of(images: Tensor) -> NDArray[np.floating]:
        return ((images - reference).square().flatten(1).mean(1) / variance).double().numpy()

    default = StepsTrial(ALL_LAYERS, NeverExit(), 1.0, losses_of(images), steps)
    if default.error >= UNRELATED:
        logger.warning(
            "%d and %d steps from the same noise, with all layers, have little in common (error %.2g), so that the "
            "choice means little: the number of steps cannot be chosen so if the scheduler adds noise of its own",
            steps,
            reference_steps,
            default.error,
        )
    counts = {max(1, round(compute * steps / share)): share for share in SHARES}  # the deepest of equal ones is kept
    trials = []
    for count in (count for count in counts if count < reference_steps):
        tried = sampling.with_steps(count)
        kind, policy = _policy_within(tried, compute * steps / count, batch_size, refine)
        images, flops = _sampled(tried, policy, count, batch_size)
        trials.append(StepsTrial(kind, policy, flops / full_flops, losses_of(images), count))
    return StepsChoice(reference_steps, default, tuple(trials))


def _policy_within(sampling: Sampling, share: float, batch_size: int, refine: bool) -> tuple[str, ExitPolicy]:
    """Calibrate for a share of all layers' FLOPs on a few samples; return the kind's name and the policy."""
    if share >= 1:
        return ALL_LAYERS, NeverExit()
    kind, cache = CorrectedSchedule(), TensorCache()
    record = record_exits(sampling, CALIBRATED, batch_size, cache)
    trials = Trials(sampling, batch_size, normalised_squared_error(record.images), cache)
    search = Search(trials, record, (kind,), refine=refine)
    return kind.name, search.refined(search.meeting(kind, share)).policy


def _sampled(sampling: Sampling, policy: ExitPolicy, steps: int, batch_size: int) -> tuple[Tensor, float]:
    """Sample images that no policy was calibrated on; return them with the FLOPs spent."""
    indices = range(CALIBRATED, CALIBRATED + COMPARED)
    batches = sampled_batches(sampling, policy, indices, batch_size, f"{steps} steps")
    return torch.cat([batch.images for batch in batches]), sum(batch.flops for batch in batches)

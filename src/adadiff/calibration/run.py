"""The calibration as a whole: from a goal to an exit policy that meets it, measured on fresh samples.

The full model is sampled once, and every exit is recorded (`record.py`). On one half of these samples, policies of
every kind are optimised (`problem.py`, `kinds.py`). On the other half they are sampled with (`trials.py`), and the best
kind is chosen (`search.py`). For a compute or speedup, the extrapolation of a corrected schedule is then fitted to its
own images (`refine.py`). The reported measurements of the chosen policy come from fresh samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.bound import least_samples, upper_bound
from adadiff.calibration.cache import TensorCache
from adadiff.calibration.goal import SEED, Goal
from adadiff.calibration.kinds import KINDS, CorrectedSchedule, Kind
from adadiff.calibration.metric import SQUARED_ERROR, Metric, losses_by, metric_name, normalised_squared_error
from adadiff.calibration.periodic import PeriodicSchedule
from adadiff.calibration.record import ExitRecord, record_exits
from adadiff.calibration.result import Calibration
from adadiff.calibration.sampling import Sampling
from adadiff.calibration.search import Search
from adadiff.calibration.trials import Trials
from adadiff.policies import NeverExit
from adadiff.sampling import UNCONDITIONAL, AdaptivePipeline, Conditions
from adadiff.utils.errors import InputError
from adadiff.utils.ranges import as_int
from adadiff.utils.text import counted


def calibrate(
    pipeline: AdaptivePipeline,
    goal: Goal,
    steps: int,
    conditions: Conditions = UNCONDITIONAL,
    samples: int = 192,
    metric: Metric | None = None,
    kinds: Sequence[Kind] = KINDS,
    seed: int = SEED,
    batch_size: int = 32,
    keep: Path | None = None,
    periodic: bool = False,
    refine: bool = True,
) -> Calibration:
    """Find the policy that meets a goal: the least error for a compute or speedup, the least compute for an error.

    A bound on the error holds by "Learn then Test" (Angelopoulos et al. 2021, arXiv 2110.01052; for early exits Jazbec
    et al. 2024, arXiv 2405.20915): policies of growing error are tested on fresh samples until one fails.

    Args:
        pipeline: The model and the scheduler.
        goal: The goal to meet.
        steps: Number of sampling steps.
        conditions: Conditions of the samples, and the guidance.
        samples: Number of samples to calibrate on, half of them for choosing; as many fresh ones are sampled to check.
        metric: The loss of a pair of images; by default `normalised_squared_error`.
        kinds: Kinds of policies to choose among.
        seed: Seed of the noise.
        batch_size: Samples per batch.
        keep: Folder that caches the samples, so that a calibration that was interrupted, or whose goal could not be
            met, can be continued. It is deleted at the end; a cache with other settings is deleted at the start.
        periodic: Choose a corrected schedule that is full at every k-th step, in place of `kinds`: samples of one meet
            at full steps in a service. The best schedule of any form is measured beside it.
        refine: Fit a corrected schedule to its own images, for goals of compute and speedup. It takes a sampling more
            for each weight of the extrapolation, and up to three rounds.

    Raises:
        InputError: If the goal cannot be met, or cannot be shown to be met with so few samples, or the metric is
            invalid.
    """
    (found,) = calibrate_each(
        pipeline, (goal,), steps, conditions, samples, metric, kinds, seed, batch_size, keep, periodic, refine
    )
    return found


def calibrate_each(
    pipeline: AdaptivePipeline,
    goals: Sequence[Goal],
    steps: int,
    conditions: Conditions = UNCONDITIONAL,
    samples: int = 192,
    metric: Metric | None = None,
    kinds: Sequence[Kind] = KINDS,
    seed: int = SEED,
    batch_size: int = 32,
    keep: Path | None = None,
    periodic: bool = False,
    refine: bool = True,
) -> list[Calibration]:
    """Find a policy for each of several goals, from the same recorded samples; for the arguments see `calibrate`."""
    pipeline.check_inputs(1, steps, NeverExit())
    sampling = AdaptiveSampling(pipeline, steps, conditions, seed)
    for goal in goals:
        check_request(goal, samples)
    if metric is not None:
        images = torch.rand(2, *pipeline.image_shape, generator=torch.Generator().manual_seed(0))
        losses_by(metric, images, images)
    return calibrated(sampling, goals, samples, metric, kinds, batch_size, keep, periodic, refine)


def calibrated(
    sampling: Sampling,
    goals: Sequence[Goal],
    samples: int,
    metric: Metric | None,
    kinds: Sequence[Kind],
    batch_size: int,
    keep: Path | None,
    periodic: bool,
    refine: bool,
) -> list[Calibration]:
    """Calibrate a pipeline, ours or any other; for the arguments and the method see `calibrate_each`."""
    if as_int(batch_size, "the batch size") < 1:
        raise InputError(f"the batch size is {batch_size}: it must be at least 1")
    beside: tuple[Kind, ...] = ()
    if periodic:
        kinds, beside = (PeriodicSchedule(),), (CorrectedSchedule(),)
    for goal in goals:
        check_compute(goal, sampling, kinds)
    judged_by = SQUARED_ERROR if metric is None else metric_name(metric)
    settings = {
        **sampling.settings(),
        "samples": samples,
        "batch_size": batch_size,
        "metric": judged_by,
        "recorded": [part.name for part in fields(ExitRecord)],  # a cache of an earlier version lacks some
    }
    cache = TensorCache(keep, settings)
    record = record_exits(sampling, samples, batch_size, cache)
    trials = Trials(sampling, batch_size, metric or normalised_squared_error(record.images), cache)
    search = Search(trials, record, kinds, beside, refine)
    found = [_calibration(search, goal, range(samples, 2 * samples), judged_by) for goal in goals]
    cache.discard()
    return found


def _calibration(search: Search, goal: Goal, fresh: Sequence[int], judged_by: str) -> Calibration:
    """Find the policy for a goal, and measure it on fresh samples."""
    trials, sampling = search.trials, search.trials.sampling
    predicted = search.for_goal(goal, fresh)
    checked = trials.sample(predicted.kind, predicted.policy, fresh)
    others = [search.refined(search.meeting(kind, goal.compute or predicted.compute)) for kind in search.beside]
    fewer = sampling.fewer_steps(checked.compute).items()
    return Calibration(
        goal,
        tuple(search.trade_off),
        predicted,
        checked,
        goal.error or upper_bound(checked.losses, 1 - goal.confidence),
        trials.speedup(predicted.policy),
        sampling.context(),
        judged_by,
        tuple(trials.sample_fewer_steps(steps, other, fresh) for steps, other in fewer),
        tuple(trials.sample(other.kind, other.policy, fresh) for other in others),
    )


def check_request(goal: Goal, samples: int) -> None:
    """Raise InputError, before anything is sampled, if the goal cannot be shown to be met with so few samples."""
    if as_int(samples, "the number of samples") < 8:
        raise InputError(f"there are {samples} samples: calibrate on at least 8")
    if goal.error is not None and samples < (least := least_samples(goal.error, 1 - goal.confidence)):
        raise InputError(
            f"{samples} samples are too few to show an error below {goal.error} with a confidence of "
            f"{goal.confidence}: calibrate on at least {least}"
        )


def check_compute(goal: Goal, sampling: Sampling, kinds: Sequence[Kind]) -> None:
    """Raise InputError if no policy of these kinds takes so many steps, or spends as little compute as is asked for."""
    steps = sampling.evaluations
    if steps > (most := max(kind.most_steps for kind in kinds)):
        raise InputError(
            f"a {' or '.join(kind.name for kind in kinds)} is searched for at most {most:.0f} evaluations of the "
            f"model, and {steps} were set: set fewer steps"
        )
    least = min(kind.least_compute(sampling.parts, steps) for kind in kinds)
    if goal.compute is not None and goal.compute < least:
        raise InputError(
            f"compute is {goal.compute}, but with {counted(steps, 'evaluation')} of the model no policy takes less "
            f"than {math.ceil(1000 * least) / 1000:.3f} of the full model's: request that, or set fewer steps"
        )

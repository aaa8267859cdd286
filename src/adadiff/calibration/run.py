"""The calibration as a whole: from a goal to an exit policy that meets it, measured on fresh samples.

The full model is sampled once, and every exit is recorded (`record.py`). On one half of these samples, policies of
every kind are optimised (`problem.py`, `kinds.py`). On the other half they are sampled with (`trials.py`), and the best
kind is chosen (`search.py`). The reported measurements of the chosen policy come from fresh samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from adadiff.calibration.bound import least_samples, upper_bound
from adadiff.calibration.cache import TensorCache
from adadiff.calibration.goal import SEED, Goal
from adadiff.calibration.kinds import KINDS, Kind
from adadiff.calibration.metric import SQUARED_ERROR, Metric, losses_by, metric_name, normalised_squared_error
from adadiff.calibration.problem import least_compute
from adadiff.calibration.record import ExitRecord, record_exits
from adadiff.calibration.result import Calibration
from adadiff.calibration.search import Search
from adadiff.calibration.trials import Trials
from adadiff.policies import NeverExit
from adadiff.policies.stored import CalibrationContext
from adadiff.sampling import UNCONDITIONAL, AdaptivePipeline, Conditions
from adadiff.sampling.folder import sampling_request
from adadiff.sampling.schedulers import scheduler_name
from adadiff.utils.errors import InputError
from adadiff.utils.files import weights_checksum


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

    Raises:
        InputError: If the goal cannot be met, or cannot be shown to be met with so few samples, or the metric is
            invalid.
    """
    check_request(pipeline, goal, steps, samples, metric)
    delta = 1 - goal.confidence
    judged_by = SQUARED_ERROR if metric is None else metric_name(metric)
    settings = {
        **sampling_request(pipeline, steps, NeverExit(), seed, conditions),
        "samples": samples,
        "batch_size": batch_size,
        "metric": judged_by,
        "recorded": [part.name for part in fields(ExitRecord)],  # a cache of an earlier version lacks some
    }
    cache = TensorCache(keep, settings)
    record = record_exits(pipeline, samples, steps, conditions, seed, batch_size, cache)
    metric = metric or normalised_squared_error(record.images)
    trials = Trials(pipeline, steps, conditions, seed, batch_size, metric, cache)
    search = Search(trials, record, kinds)
    fresh = range(samples, 2 * samples)
    predicted = search.for_goal(goal, fresh)
    checked = trials.sample(predicted.kind, predicted.policy, fresh)
    calibration = Calibration(
        goal,
        tuple(search.trade_off),
        predicted,
        checked,
        goal.error or upper_bound(checked.losses, delta),
        trials.speedup(predicted.policy),
        calibration_context(pipeline, steps, conditions, evaluations=len(record.errors)),
        judged_by,
    )
    cache.discard()
    return calibration


def check_request(
    pipeline: AdaptivePipeline, goal: Goal, steps: int, samples: int, metric: Metric | None = None
) -> None:
    """Raise InputError, before anything is sampled, if the goal cannot be met or shown, or the metric is invalid."""
    pipeline.check_inputs(1, steps, NeverExit())
    if samples < 8:
        raise InputError(f"there are {samples} samples: calibrate on at least 8")
    if goal.error is not None and samples < (least := least_samples(goal.error, 1 - goal.confidence)):
        raise InputError(
            f"{samples} samples are too few to show an error below {goal.error} with a confidence of "
            f"{goal.confidence}: calibrate on at least {least}"
        )
    if goal.compute is not None and goal.compute < (least_spent := least_compute(pipeline.transformer.part_flops)):
        raise InputError(
            f"compute is {goal.compute}, but one layer at every step takes {least_spent:.3f} of the full model's "
            f"compute: request more, or set fewer steps"
        )
    if metric is not None:
        images = torch.rand(2, *pipeline.image_shape, generator=torch.Generator().manual_seed(0))
        losses_by(metric, images, images)


def calibration_context(
    pipeline: AdaptivePipeline, steps: int, conditions: Conditions, evaluations: int
) -> CalibrationContext:
    """Return the model and sampling settings that a policy calibrated here fits."""
    model = pipeline.transformer
    return CalibrationContext(
        weights_checksum(Path(model.config.get("_name_or_path", ""))),
        model.depth,
        scheduler_name(pipeline.scheduler),
        steps,
        conditions.guidance.scale,
        evaluations,
    )

"""Schedules for searches that need many: few samples are recorded, and a schedule for a share takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable

from adadiff.calibration.cache import TensorCache
from adadiff.calibration.influence import measured_influence
from adadiff.calibration.kinds import CorrectedSchedule
from adadiff.calibration.problem import Problem
from adadiff.calibration.record import ExitRecord
from adadiff.calibration.sampling import Sampling
from adadiff.policies import CorrectedScheduleExit

RECORDED = 16  # samples whose exits are recorded
PROBED_STEPS, PROBED_SAMPLES = 4, 4  # of the influence
LEAST_SHARE = 0.01
CORRECTIONS = 4  # most trials to bring a schedule within its share, heads that measure corrections included


def quick_problem(sampling: Sampling, cache: TensorCache) -> Problem:
    """Record the exits of `RECORDED` samples and the influence of a few steps, unless they are cached."""
    record = ExitRecord(**cache.compute_once("exits", lambda: sampling.record(range(RECORDED))))
    influence = cache.compute_once(
        "influence", lambda: {"steps": measured_influence(sampling, record, PROBED_STEPS, PROBED_SAMPLES, False)}
    )["steps"]
    return Problem(record, influence, sampling.parts, sampling.predictions(len(influence)))


def schedule_within(
    problem: Problem, share: float, compute_of: Callable[[CorrectedScheduleExit], float]
) -> CorrectedScheduleExit:
    """Return the corrected schedule of the least expected error that takes at most a share of the compute.

    Args:
        problem: What was recorded.
        share: FLOPs over those of all layers, in (0, 1); after so many corrections of it a trifle more may be
            taken, and even the least schedule may take more.
        compute_of: Returns exactly the same of a schedule.
    """
    asked = share
    for _ in range(CORRECTIONS):
        policy = CorrectedSchedule().meeting(problem, max(asked, LEAST_SHARE))
        excess = compute_of(policy) - share
        if excess <= 0:
            break
        asked -= excess
    return policy

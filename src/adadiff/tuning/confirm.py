"""The confirmation of plans: fresh images, from noise that no search used, and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from adadiff.sampling import SamplingPlan
from adadiff.tuning.result import Confirmed
from adadiff.tuning.score import Scorer
from adadiff.tuning.tunable import Tunable
from adadiff.utils.timing import median_seconds

TIMED_IMAGES, TIMED_REPEATS = 8, 3
SHARES = ("agreement", "precision", "recall", "clip_score")


def confirm(scorer: Scorer, plans: Sequence[SamplingPlan]) -> list[Confirmed]:
    """Measure plans on fresh images, and time them in turns.

    Args:
        scorer: Measures the plans, and knows the model, the number of fresh images and the seed of their noise.
        plans: The plans.
    """
    measurer, model = scorer.measurer, scorer.model
    full = model.flops(model.default)
    images = scorer.confirming[1]
    fresh = [measurer.measure(plan, images, scorer.fresh_seed, SHARES, errors=True) for plan in plans]
    return [
        Confirmed(plan, measured.flops / full, scorer.predicted(plan), measured, seconds)
        for plan, measured, seconds in zip(plans, fresh, seconds_of(model, plans), strict=True)
    ]


def seconds_of(model: Tunable, plans: Sequence[SamplingPlan]) -> list[float]:
    """Return the seconds of an image of each plan, in batches of `TIMED_IMAGES`, timed in turns."""

    def sample(plan: SamplingPlan) -> None:
        model.sampling(plan, 0).batch(plan.policy, range(TIMED_IMAGES))

    taken = median_seconds({str(k): partial(sample, plan) for k, plan in enumerate(plans)}, TIMED_REPEATS)
    return [taken[str(k)] / TIMED_IMAGES for k in range(len(plans))]

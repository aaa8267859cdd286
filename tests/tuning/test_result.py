"""Which plan is chosen, by plans and measurements made up for it."""

import numpy as np
import pytest

from adadiff.sampling import Guidance, SamplingPlan
from adadiff.tuning import Confirmed, Tuning, TuningGoal
from adadiff.tuning.measure import Measurement
from adadiff.tuning.report import outcome_in_words


def confirmed(steps, compute, searched, first, second, agreement=0.7, scale=6.0):
    distances = {"searched": searched, "first": first, "second": second}
    errors = dict.fromkeys(distances, 0.1)
    fresh = Measurement(100, compute * 1e9, distances, errors, {"agreement": agreement})
    return Confirmed(SamplingPlan(steps, guidance=Guidance(scale)), compute, compute, fresh)


DEFAULT = confirmed(20, 1.0, 4.0, 8.0, 2.0)
FULL = (confirmed(20, 0.8, 3.0, 4.0, 2.0, scale=4), confirmed(20, 0.9, 2.0, 6.0, 1.8, 0.6, scale=3))
CHEAP = confirmed(5, 0.2, 5.0, 8.0, 3.0)
MIDDLE = confirmed(10, 0.4, 2.5, 3.9, 2.0, 0.68)
DEAR = confirmed(15, 0.6, 2.0, 2.0, 1.0, 0.66)


def tuning(budget=None, tuned=(CHEAP, MIDDLE, DEAR), **floors):
    goal = TuningGoal(compute=budget, **floors)
    return Tuning(goal, budget, ("searched",), ("first", "second"), DEFAULT, FULL, tuned, ())


def test_with_a_budget_the_judges_alone_name_the_best_within_it():
    assert tuning(0.7).chosen is DEAR
    assert tuning(0.5).chosen is MIDDLE
    rival = confirmed(8, 0.4, 0.1, 9.0, 9.0)  # by far the best by what the search went by
    assert tuning(0.5, (rival, MIDDLE)).chosen is MIDDLE


def test_without_a_budget_the_least_compute_is_chosen_that_is_as_good_as_the_full_models_best():
    assert tuning().best_full is FULL[0]
    assert tuning().chosen is MIDDLE
    assert tuning(tuned=(CHEAP,)).chosen is CHEAP  # none is as good: the best there is


def test_floors_count_before_distances():
    assert tuning(agreement=0.67).chosen is MIDDLE
    assert tuning(agreement=0.67).best_full is FULL[0]
    assert tuning(agreement=0.58).best_full is FULL[0]
    missing = tuning(0.7, agreement=0.8)
    assert missing.chosen is None
    assert missing.nearest is CHEAP
    assert outcome_in_words(missing).endswith("reaches agreement 0.700 of 0.800")


def test_relative_distances_and_their_errors_against_draws():
    rng = np.random.default_rng(0)
    assert MIDDLE.fresh.relative(["first", "second"], DEFAULT.fresh) == pytest.approx((3.9 / 8 + 1) / 2)
    draw = {
        name: rng.normal((MIDDLE.fresh.distances[name], DEFAULT.fresh.distances[name]), 0.1, (100_000, 2))
        for name in ("first", "second")
    }
    ratios = np.mean([pair[:, 0] / pair[:, 1] for pair in draw.values()], axis=0)
    assert MIDDLE.fresh.relative_error(["first", "second"], DEFAULT.fresh) == pytest.approx(ratios.std(), rel=0.02)


def test_where_guidance_differs_it_is_said():
    words = outcome_in_words(tuning(0.7))
    assert words.endswith("Guidance differs: the default: scale 6; the full model's best: scale 4; the plan: scale 6.")


def test_networks_of_the_search_that_call_the_plan_worse_are_named():
    rival = confirmed(8, 0.4, 4.0, 1.0, 1.0)  # 4.0 +- 0.1 against the full model's 3.0 +- 0.1 by the search's network
    assert (
        "By the networks of the search, it has 1.333 ± 0.056 (searched: worse) of the full model's."
        in outcome_in_words(tuning(0.5, (rival,)))
    )
    assert "it has 0.833 ± 0.043 (searched) of the full model's." in outcome_in_words(tuning(0.5))

"""What the methods make of a trial's choices."""

from dataclasses import replace

import optuna
import pytest
import torch

from adadiff import InputError
from adadiff.comparison.plans.methods import METHODS, CachedPlan, SkipCache
from adadiff.policies import NeverExit, ThresholdExit
from adadiff.sampling import Guidance
from adadiff.tuning.depth import DepthPlanner
from adadiff.tuning.space import Choices

CHOICES = Choices(8, "ddim", "leading", Guidance(2.0, (0.25, 0.75)), depth=0.5)


@pytest.fixture
def planned(tunable, tmp_path):
    planner = DepthPlanner(tunable, tmp_path, seed=5)

    def plan(method, most_flops=float("inf"), **fixed):
        return METHODS[method].plan(optuna.trial.FixedTrial(fixed), CHOICES, planner, most_flops)

    return plan


def test_extrapolation_is_the_polynomial_through_the_last_full_predictions(planned):
    """All layers run at every third step and at the last."""
    policy = planned("extrapolation", interval=3, order=1).policy
    assert policy.layers == (5, 0, 0, 5, 0, 0, 5, 5)
    assert set(policy.extrapolation) == {(1.0, 1.0, 0.0)}


@pytest.mark.parametrize("share", [0.4, 0.5, 0.7])
def test_a_plan_is_cut_down_to_the_budget_and_no_further(planned, tunable, share):
    most = share * tunable.flops(CHOICES.with_all_layers)
    fewer = [replace(CHOICES.with_all_layers, steps=steps) for steps in range(8, 0, -1)]
    rarer = [planned("extrapolation", interval=interval, order=1) for interval in range(2, 9)]
    for plans, cut in [
        (fewer, planned("fewer-steps", most)),
        (rarer, planned("extrapolation", most, interval=2, order=1)),
    ]:
        assert cut == next(plan for plan in plans if tunable.flops(plan) <= most)


def test_the_paper_s_rule(planned):
    assert planned("threshold", tau=0.12345, min_layer=2).policy == ThresholdExit(0.1235, min_layer=2)


def test_ours_spends_the_share_that_was_chosen(planned, classes_pipeline):
    parts = classes_pipeline.transformer.part_flops
    share = planned("ours").flops(parts) / CHOICES.with_all_layers.flops(parts)
    assert 0.3 < share <= 0.5


def test_a_cached_plan_samples_with_the_cache(planned, classes_pipeline):
    plan = planned("skip-caching", interval=4, shallow=1)
    assert plan == CachedPlan.of(CHOICES, SkipCache(4, 1))
    assert plan != CHOICES.with_all_layers
    pipeline = classes_pipeline.with_plan(plan)
    exits = pipeline(class_labels=[0], generator=torch.Generator().manual_seed(0), policy=NeverExit()).trace.exit_layers
    assert exits.flatten().tolist() == [5, 2, 5, 2, 5, 2, 2, 2]  # guidance begins at step 2
    assert plan.describe() == {**CHOICES.with_all_layers.describe(), "cache": {"interval": 4, "shallow": 1}}
    with pytest.raises(InputError, match="only known by sampling"):
        plan.flops(classes_pipeline.transformer.part_flops)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_first_trials_are_within_the_space(method, tunable):
    """Their parameters are those that the method suggests."""
    space = method.space(replace(tunable.space(), steps=(4, 8)), replace(tunable.default, steps=8))
    start = method.start(0.5, 8)
    assert set(start) <= {"steps", "depth", "interval", "shallow"}
    assert space.steps[0] <= start["steps"] <= space.steps[1]
    assert space.internal_layers == (4 if method.guided_internally else 0)
    assert (space.depth == (1.0, 1.0)) == (method.name != "ours")

"""Periodic schedules against all of them, tried one by one, and a calibration that chooses one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from adadiff import InputError
from adadiff.calibration import Goal, calibrate, calibration_table
from adadiff.calibration.kinds import LIKENESSES, CorrectedSchedule, step_costs
from adadiff.calibration.periodic import STARTS, Period, PeriodicSchedule
from adadiff.calibration.problem import Problem
from adadiff.calibration.record import LONGEST_GAP
from adadiff.policies import LINE
from tests.calibration.test_kinds import LAYERS, make_drifting_problem


def is_periodic(layers: tuple[int, ...], depth: int) -> bool:
    """Whether full steps follow each other at one distance, with the same exits between, after those at the start."""
    start = next((step for step, layer in enumerate(layers) if layer < depth), len(layers))
    rest = layers[start:]
    period = rest.index(depth) + 1 if depth in rest else len(rest)
    return start > 0 and all(layer == rest[k % period] for k, layer in enumerate(rest) if period)


@pytest.mark.parametrize("budget", [0.45, 0.6, 0.75])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_all_periods_is_hardly_better(seed: int, budget: float):
    steps = 9
    _, problem = make_drifting_problem(steps, seed)
    total, costs = problem.total_error, step_costs(problem)[0]
    everyone = {
        Period(start, pattern).layers(steps, LAYERS, 0)
        for start in STARTS
        for length in range(1, 5)
        for pattern in itertools.product(range(LAYERS), repeat=length)
    }
    within = [layers for layers in everyone if costs[list(layers)].sum() <= budget * steps]
    found = [policy.layers for policy in PeriodicSchedule().candidates(problem, budget)]
    for layers in found:
        assert is_periodic(layers, LAYERS)
        assert costs[list(layers)].sum() <= budget * steps
    for likeness in LIKENESSES:
        best = min(total.fitted(layers, likeness)[0] for layers in within)
        assert min(total.fitted(layers, likeness)[0] for layers in found) <= 1.05 * best


def test_the_extrapolation_is_fitted_to_the_schedule():
    _, problem = make_drifting_problem(9)
    policy = next(PeriodicSchedule().candidates(problem, 0.6))
    assert policy.extrapolation in [problem.total_error.fitted(policy.layers, each)[1] for each in LIKENESSES]
    assert any(row != LINE for row in policy.extrapolation)


def test_all_layers_run_where_guidance_begins():
    _, problem = make_drifting_problem(12)
    predictions = torch.tensor([1] * 4 + [2] * 8)
    guided = Problem(problem.record, problem.influence, problem.parts, predictions)
    for policy in PeriodicSchedule().candidates(guided, 0.6):
        assert policy.layers[0] == policy.layers[4] == LAYERS
        assert is_periodic(policy.layers[:4], LAYERS)
        assert is_periodic(policy.layers[4:], LAYERS)
        assert guided.outcome(policy)[1] <= 0.6 + 0.01  # the heads that measure corrections included


def test_a_budget_that_no_period_meets_takes_the_fewest_full_steps():
    _, problem = make_drifting_problem(12)
    (policy,) = PeriodicSchedule().candidates(problem, 0.05)
    assert [step for step, layer in enumerate(policy.layers) if layer == LAYERS] == [0, LONGEST_GAP + 1]
    least = PeriodicSchedule().least_compute(problem.parts, 12)
    assert least == pytest.approx(step_costs(problem)[0][list(policy.layers)].sum() / 12)


def test_a_period_is_calibrated_and_the_best_schedule_of_any_form_stands_beside_it(pipeline):
    found = calibrate(pipeline, Goal(compute=0.55), 8, samples=8, periodic=True)
    assert found.predicted.kind == "periodic schedule"
    assert is_periodic(found.policy.layers, 5)
    assert found.checked.compute <= 0.553
    (free,) = found.beside
    assert free.kind == CorrectedSchedule.name
    assert len(free.losses) == len(found.checked.losses)
    assert found.stored.found["beside"] == [{"kind": free.kind, "compute": free.compute, "error": free.error}]
    assert {point.kind for point in found.trade_off} == {"periodic schedule", "corrected schedule"}
    assert "fresh samples, for comparison" in list(calibration_table(found).columns[3].cells)
    assert "beside" not in replace(found, beside=()).stored.found


def test_too_many_steps_are_refused_before_anything_is_sampled(pipeline, monkeypatch):
    monkeypatch.setattr("adadiff.calibration.run.record_exits", None)
    with pytest.raises(InputError, match="a periodic schedule is searched for at most 250 evaluations"):
        calibrate(pipeline, Goal(compute=0.55), 300, samples=8, periodic=True)

"""Policies at a price against all policies of their kind, tried one by one."""

import itertools
from dataclasses import replace

import pytest
import torch

from adadiff import ScheduleExit, ThresholdExit
from adadiff.calibration.record import ExitRecord
from adadiff.calibration.solve import (
    KINDS,
    ExcessError,
    Problem,
    Schedule,
    SingleThreshold,
    StepThresholds,
    exit_layers,
)
from adadiff.exits.flops import PartFlops

STEPS, LAYERS, SAMPLES = 3, 4, 40


def make_problem(seed=0, known=1.0):
    """Samples of different difficulty, of which the uncertainty tells as much as `known`, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    difficulty = torch.rand(SAMPLES, generator=generator)
    step = torch.tensor([0.5, 1.0, 3.0])[:, None, None]
    layer = torch.tensor([8.0, 3.0, 1.0, 0.0])[None, :, None]
    errors = 0.01 * step * layer * (0.2 + 2 * difficulty)
    noise = torch.rand(STEPS, LAYERS, SAMPLES, generator=generator)
    uncertainties = (0.1 + 0.5 * (known * difficulty + (1 - known) * noise)) * (1 + 0.1 * layer) / 2
    record = ExitRecord(errors, uncertainties, torch.zeros(SAMPLES, 1, 2, 2))
    parts = PartFlops(5, torch.full((LAYERS,), 100), torch.full((LAYERS,), 3), torch.full((LAYERS,), 1))
    return Problem(record, torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), parts)


def objective(problem, policy, price):
    error, cost = problem.outcome(policy)
    return error + price * cost * STEPS


def test_where_samples_leave_is_the_first_layer_that_passes():
    uncertainties = torch.tensor([[0.5, 0.1, 0.9], [0.2, 0.9, 0.8], [0.1, 0.1, 0.7], [0.0, 0.0, 0.0]])
    assert exit_layers(ThresholdExit(0.3), 0, uncertainties).tolist() == [2, 1, 4]


def test_an_outcome_is_what_a_loop_over_steps_and_samples_adds_up_to():
    problem, policy = make_problem(), ThresholdExit(0.25)
    error = cost = 0.0
    for step, k in itertools.product(range(STEPS), range(SAMPLES)):
        seen = problem.record.uncertainties[step, :, k]
        exit_layer = next((i for i in range(1, LAYERS) if seen[i - 1] < 0.25), LAYERS)
        error += (problem.influence[step] * problem.record.errors[step, exit_layer - 1, k]).item() / SAMPLES
        flops = 5 + 100 * exit_layer + 3 + min(exit_layer, LAYERS - 1)
        cost += flops / 408 / SAMPLES / STEPS
    assert problem.outcome(policy) == pytest.approx((error, cost))


@pytest.mark.parametrize("price", [1e-4, 0.03, 0.1, 0.3, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_schedule_is_the_best_of_all_schedules(price, seed):
    problem = make_problem(seed)
    everyone = [ScheduleExit(layers) for layers in itertools.product(range(1, LAYERS + 1), repeat=STEPS)]
    best = min(objective(problem, policy, price) for policy in everyone)
    assert objective(problem, Schedule().at(problem, price), price) == pytest.approx(best)


@pytest.mark.parametrize("price", [0.03, 0.1, 0.3])
def test_thresholds_per_step_are_no_worse_than_any_on_a_grid(price):
    problem = make_problem()
    found = objective(problem, StepThresholds().at(problem, price), price)
    grid = [0.0, 0.15, 0.2, 0.25, 0.3, 0.4, 1.0]
    best = min(objective(problem, ThresholdExit(taus), price) for taus in itertools.product(grid, repeat=STEPS))
    assert found <= best * 1.02


@pytest.mark.parametrize("price", [0.03, 0.1, 0.2, 0.3])
def test_excess_error_is_optimal_where_the_uncertainty_tells_the_error(price):
    """Every sample's own best layer at every step, plus estimators."""
    problem = make_problem(known=1.0)
    free = Problem(problem.record, problem.influence, replace(problem.parts, estimators=torch.zeros(LAYERS).long()))
    costs = free.costs(torch.zeros(LAYERS, dtype=torch.bool))
    oracle = (free.errors + price * costs[None, :, None]).min(1).values.mean(1).sum().item()
    found = objective(free, ExcessError().at(free, price), price)
    assert oracle * (1 - 1e-9) <= found <= oracle * 1.01
    assert objective(free, Schedule().at(free, price), price) > oracle * 1.01


def test_excess_error_asks_no_estimator_where_the_uncertainty_tells_nothing():
    """Then it is the schedule, up to what isotonic regression makes of chance."""
    problem = make_problem(known=0.0)
    for price in (0.05, 0.2):
        excess = objective(problem, ExcessError().at(problem, price), price)
        schedule = objective(problem, Schedule().at(problem, price), price)
        assert excess == pytest.approx(schedule, rel=0.1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("compute", [0.4, 0.55, 0.8])
def test_budgets_are_met(kind, compute):
    problem = make_problem(known=0.7)
    policy = kind.meeting(problem, compute)
    policy.check(LAYERS, STEPS)
    tolerance = 0.13 if kind.name == "step schedule" else 0.04  # schedules of 3 steps are few
    assert problem.outcome(policy)[1] == pytest.approx(compute, abs=tolerance)


def test_with_more_knowledge_less_error_at_the_same_compute():
    problem = make_problem(known=1.0)
    errors = {type(kind): problem.outcome(kind.meeting(problem, 0.55))[0] for kind in KINDS}
    assert errors[ExcessError] < errors[SingleThreshold]
    assert errors[StepThresholds] < errors[SingleThreshold]

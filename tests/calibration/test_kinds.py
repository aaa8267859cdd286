"""Policies at a price against all policies of their kind, tried one by one."""

import itertools
from dataclasses import replace

import pytest
import torch

from adadiff import ScheduleExit, ThresholdExit
from adadiff.calibration.kinds import (
    KINDS,
    CorrectedSchedule,
    ExcessError,
    Schedule,
    SingleThreshold,
    StepThresholds,
)
from adadiff.calibration.problem import Problem, exit_layers
from adadiff.calibration.record import WINDOW, ExitRecord
from adadiff.policies import LINE
from adadiff.runtime import Corrections, PartFlops, RowMemory

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
    products = torch.zeros(STEPS, WINDOW, LAYERS + 1, LAYERS + 1, SAMPLES)
    for layer in range(LAYERS):  # of one step and another, or one layer and another: as if they had nothing in common
        products[:, 0, layer + 1, layer + 1] = errors[:, layer]
    products[:, 0, 0, 0] = 1e6  # so that layer 0 is no choice here
    record = ExitRecord(products, uncertainties, torch.zeros(SAMPLES, 1, 2, 2))
    parts = PartFlops(5, torch.full((LAYERS,), 100), torch.full((LAYERS,), 3), torch.full((LAYERS,), 1))
    return Problem(record, torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), parts)


def make_drifting_problem(steps, seed=0, samples=5, pixels=6):
    """Differences of layers 0..N from the full prediction that drift from step to step, and the problem they make."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([1.5, 1.0, 0.6, 0.2, 0.0])[:, None, None]
    start, drift = (torch.randn(1, LAYERS + 1, samples, pixels, generator=generator) for _ in range(2))
    way = torch.linspace(0, 2, steps)[:, None, None, None]
    noise = 0.2 * torch.randn(steps, LAYERS + 1, samples, pixels, generator=generator)
    differences = size * (start + way * drift + noise)
    products = torch.zeros(steps, WINDOW, LAYERS + 1, LAYERS + 1, samples)
    for step, k in itertools.product(range(steps), range(WINDOW)):
        if k <= step:
            products[step, k] = torch.einsum("isp,jsp->ijs", differences[step], differences[step - k]) / pixels
    uncertainties = torch.zeros(steps, LAYERS, samples)
    record = ExitRecord(products, uncertainties, torch.zeros(samples, 1, 2, 2))
    parts = PartFlops(5, torch.full((LAYERS,), 100), torch.full((LAYERS,), 3), torch.full((LAYERS,), 1))
    return differences, Problem(record, torch.rand(steps, generator=generator).double() + 0.5, parts)


def corrected_error(differences, influence, layers):
    """What a schedule's exits err by, with the corrections that sampling makes along lines; errors of a run add up."""
    samples, pixels = differences.shape[2:]
    corrections, total = Corrections(RowMemory(samples)), 0.0
    everyone, lines, run = torch.arange(samples), torch.tensor([LINE] * samples), 0.0
    for step, exit_layer in enumerate(layers):
        steps = torch.full((samples,), step)
        images = differences[step].reshape(LAYERS + 1, samples, 1, 1, pixels)
        left = images[exit_layer]
        if exit_layer == LAYERS:
            for layer in range(LAYERS):
                corrections.measure(layer, everyone, steps, left - images[layer])
            total, run = total + run_error(run), 0.0
        else:
            run = run + influence[step].sqrt() * corrections.correct(exit_layer, everyone, steps, left, lines)
    return total + run_error(run)


def run_error(run):
    """The mean square of what the errors of a run of early steps add up to."""
    return run.square().mean().item() if isinstance(run, torch.Tensor) else 0.0


def one_layer_in_each_run(layers):
    """Whether all early steps between two full ones exit after the same layer."""
    runs = "".join(map(str, layers)).split(str(LAYERS))
    return all(len(set(run)) <= 1 for run in runs)


def expected_error(problem, layers):
    """The sum of the runs' errors, each after one layer, by the tables of the problem."""
    total, full, run = 0.0, [], []
    for step, layer in enumerate((*layers, LAYERS)):
        if layer < LAYERS:
            run.append(layer)
            continue
        if run:
            gap_before = full[-1] - full[-2] if len(full) > 1 else 0
            table = problem.run_products[full[-1], gap_before] if full else problem.start_products
            total += table[run[0], : len(run), : len(run)].sum()
        full, run = [*full, step], []
    return total


@pytest.mark.parametrize("seed", range(3))
def test_the_expected_error_of_runs_is_that_of_their_corrected_exits(seed):
    differences, problem = make_drifting_problem(steps=12, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        full = torch.rand(12, generator=generator) < 0.4
        full[2] = full[7] = True
        early = torch.randint(1, LAYERS, (13,), generator=generator)[full.cumsum(0)]  # one layer for each run
        layers = torch.where(full, LAYERS, early).tolist()
        wanted = corrected_error(differences, problem.influence, layers)
        assert expected_error(problem, layers) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("price", [1e-3, 0.03, 0.1, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_corrected_schedule_is_the_best_with_one_layer_in_each_run(price, seed):
    differences, problem = make_drifting_problem(steps=5, seed=seed)
    cost = torch.tensor([0.0, 108, 208, 308, 408]) / 408

    def objective(layers):
        return corrected_error(differences, problem.influence, layers) + price * sum(cost[k].item() for k in layers)

    everyone = itertools.product(range(LAYERS + 1), repeat=5)
    best = min(
        objective(layers)
        for layers in everyone
        if one_layer_in_each_run(layers) and (0 not in layers or LAYERS in layers[: layers.index(0)])
    )
    assert objective(CorrectedSchedule().at(problem, price).layers) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("price", [0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("predictions", [(1, 1, 2, 2, 1), (2, 2, 1, 1, 1), (1, 2, 2, 2, 2)])
def test_guided_steps_cost_twice_as_much_and_all_layers_run_where_guidance_begins(price, predictions):
    problem = replace(make_drifting_problem(steps=5)[1], predictions=torch.tensor(predictions))
    cost = torch.tensor([0.0, 108, 208, 308, 408]) / 408
    begins = next((step for step in range(1, 5) if predictions[step] > predictions[step - 1]), 0)

    def objective(layers):
        spent = sum(5 * cost[layer].item() * n / sum(predictions) for layer, n in zip(layers, predictions, strict=True))
        return expected_error(problem, layers) + price * spent

    possible = [
        layers
        for layers in itertools.product(range(LAYERS + 1), repeat=5)
        if one_layer_in_each_run(layers)
        and (0 not in layers or LAYERS in layers[: layers.index(0)])
        and (LAYERS not in layers[:begins] or layers[begins] == LAYERS)
    ]
    found = CorrectedSchedule().at(problem, price).layers
    assert objective(found) == pytest.approx(min(objective(layers) for layers in possible), rel=1e-6)


@pytest.mark.parametrize("compute", [0.45, 0.55, 0.7])
def test_what_a_budget_leaves_over_is_spent(compute):
    _, problem = make_drifting_problem(steps=20)
    kind = CorrectedSchedule()
    policy = kind.meeting(problem, compute)
    assert compute - 0.02 <= problem.outcome(policy)[1] <= compute + 0.005
    assert (
        problem.total_error.fitted(policy.layers, 1.0)[0] < problem.outcome(Schedule().meeting(problem, compute))[0] / 2
    )


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
    tolerance = 0.13 if "schedule" in kind.name else 0.04  # schedules of 3 steps are few
    assert problem.outcome(policy)[1] == pytest.approx(compute, abs=tolerance)


def test_with_more_knowledge_less_error_at_the_same_compute():
    problem = make_problem(known=1.0)
    kinds = (SingleThreshold(), StepThresholds(), ExcessError())
    errors = {type(kind): problem.outcome(kind.meeting(problem, 0.55))[0] for kind in kinds}
    assert errors[ExcessError] < errors[SingleThreshold]
    assert errors[StepThresholds] < errors[SingleThreshold]


def test_the_least_compute_is_not_spent_on_exits_that_nothing_corrects():
    """Their errors add up, too: a full step whose predictions are carried on is worth it."""
    _, problem = make_drifting_problem(steps=20)
    policy = CorrectedSchedule().meeting(problem, 0.3)
    assert LAYERS in policy.layers[:3]

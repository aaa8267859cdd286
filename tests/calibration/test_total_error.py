"""The expected error of a schedule against the corrections that sampling makes, added up step by step."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adadiff.calibration.total_error import TotalError
from adadiff.policies import LINE, CorrectedScheduleExit
from adadiff.runtime import Corrections, RowMemory
from tests.calibration.test_kinds import LAYERS, make_drifting_problem

STEPS = 9
DIFFERENCES, PROBLEM = make_drifting_problem(STEPS)
INFLUENCE = PROBLEM.influence.numpy()
UNGUIDED = np.zeros(STEPS, dtype=bool)


def total_of(guided=UNGUIDED):
    return TotalError(PROBLEM.products, INFLUENCE, guided)


def errors_of(policy, differences=DIFFERENCES, problem=PROBLEM):
    """What each early exit errs by on the final image, in order, with the corrections of the runtime."""
    samples, pixels = differences.shape[2:]
    corrections, everyone, errors = Corrections(RowMemory(samples)), torch.arange(samples), {}
    for step, exit_layer in enumerate(policy.layers):
        steps = torch.full((samples,), step)
        images = differences[step].reshape(LAYERS + 1, samples, 1, 1, pixels)
        if exit_layer == LAYERS:
            for layer in range(LAYERS):
                corrections.measure(layer, everyone, steps, images[LAYERS] - images[layer])
        else:
            weights = torch.tensor([policy.extrapolation_at(step)] * samples)
            left = corrections.correct(exit_layer, everyone, steps, images[exit_layer], weights)
            errors[step] = problem.influence[step].sqrt() * left
    return errors


def reference(policy, likeness):
    """The sum over all pairs of early steps."""
    pairs = itertools.product(errors_of(policy).items(), repeat=2)
    return sum(likeness ** abs(j - k) * (one * other).mean().item() for (j, one), (k, other) in pairs)


schedules = st.lists(st.sampled_from([0, 1, 2, 3, LAYERS, LAYERS]), min_size=STEPS, max_size=STEPS)


@given(layers=schedules, likeness=st.sampled_from([0.0, 0.5, 1.0]))
def test_the_error_is_that_of_all_corrected_exits(layers, likeness):
    total = total_of()
    if not total.is_possible(layers):
        return
    error, weights = total.fitted(layers, likeness)
    policy = CorrectedScheduleExit(tuple(layers), weights)
    assert error == pytest.approx(reference(policy, likeness), rel=2e-3, abs=1e-4)


def test_pairs_of_errors_whose_products_were_not_recorded_count_as_unrelated():
    """Half of such a pair's products would make errors of any size, even below 0."""
    steps = 48
    differences, problem = make_drifting_problem(steps)
    layers = tuple(LAYERS if step % 9 == 0 else 0 for step in range(steps))
    error, weights = problem.total_error.fitted(layers, 1.0)
    first = {step: max(step // 9 - 2, 0) * 9 for step in range(steps)}  # of the three full steps before it
    pairs = itertools.product(errors_of(CorrectedScheduleExit(layers, weights), differences, problem).items(), repeat=2)
    wanted = sum(
        (one * other).mean().item()
        for (j, one), (k, other) in pairs
        if max(j, k) - min(first[j], first[k]) < problem.total_error.products.shape[1]
    )
    assert error == pytest.approx(wanted, rel=2e-3)
    assert error > 0


@given(layers=schedules)
def test_the_fitted_extrapolation_errs_no_more_than_lines(layers):
    total = total_of()
    if total.is_possible(layers):
        lines = reference(CorrectedScheduleExit(tuple(layers)), 1.0)
        assert total.fitted(layers, 1.0)[0] <= lines * (1 + 1e-3) + 1e-4


def test_all_layers_at_all_steps_err_nothing():
    assert total_of().fitted((LAYERS,) * STEPS, 0.9) == (0.0, (LINE,) * STEPS)


def test_what_moves_along_a_parabola_is_met_without_a_pull(monkeypatch):
    monkeypatch.setattr("adadiff.calibration.total_error.PULL", 0.0)
    steps = torch.arange(STEPS, dtype=torch.float64)
    moving = 1 + 0.5 * steps + 0.1 * steps**2
    products = np.zeros((STEPS, 27, 2, 2))
    for step in range(STEPS):
        for k in range(step + 1):
            products[step, k, 0, 0] = moving[step] * moving[step - k]
    error, weights = TotalError(products, np.ones(STEPS), UNGUIDED).fitted((1, 1, 1, 0, 1, 0, 0, 1, 0), 1.0)
    assert error < 1e-6
    assert all(np.isfinite(weights).flatten())


def test_only_schedules_whose_corrections_exist_are_possible():
    total = total_of(np.arange(STEPS) >= 4)
    full = LAYERS
    assert total.is_possible((full, 0, 0, 1, full, 0, 0, 0, 0))
    assert not total.is_possible((0, full, 0, 1, full, 0, 0, 0, 0))  # nothing to carry on yet
    assert not total.is_possible((full, 0, 0, 1, 1, full, 0, 0, 0))  # guidance begins at an early step
    assert total.is_possible((1, 1, 1, 1, 1, full, 0, 0, 0))  # after no full step nothing is corrected
    longer = TotalError(np.zeros((12, 27, full + 1, full + 1)), np.ones(12), np.zeros(12, bool))
    assert longer.is_possible((full, *[1] * 8, full, 1, 1))
    assert not longer.is_possible((full, *[1] * 9, full, 1))


def test_nothing_measured_before_guidance_begins_is_carried_beyond_it():
    layers = (LAYERS, LAYERS, 0, 0, LAYERS, 1, LAYERS, 1, 1)
    weights = total_of(np.arange(STEPS) >= 4).fitted(layers, 1.0)[1]
    assert weights[5][1:] == (0.0, 0.0)  # one measurement: no slope
    assert weights[7][1] != 0
    assert weights[7][2] == 0.0  # two measurements: no curvature


def test_what_was_measured_with_guidance_goes_along_lines_where_it_has_ended():
    layers = (LAYERS, LAYERS, 1, LAYERS, 1, 1, LAYERS, LAYERS, 1)
    free, ended = (total_of(guided).fitted(layers, 1.0)[1] for guided in (UNGUIDED, np.arange(STEPS) < 5))
    assert [weights == LINE for weights in ended] == [step not in (2, 4) for step in range(STEPS)]
    assert free[5] != LINE
    assert free[8] != LINE

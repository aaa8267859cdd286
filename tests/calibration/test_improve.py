"""The local search against all schedules, tried one by one."""

import itertools

import numpy as np
import pytest

from adadiff.calibration.improve import improved
from tests.calibration.test_kinds import LAYERS, make_drifting_problem

COSTS = np.array([0.0, 108, 208, 308, 408]) / 408


@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_all_schedules_is_hardly_better(seed):
    _, problem = make_drifting_problem(steps=5, seed=seed)
    total = problem.total_error
    costs, budget = np.tile(COSTS, (5, 1)), 3.0
    start = (LAYERS, 0, LAYERS, 0, 0)
    found = improved(total, 0.9, [start], costs, budget)
    assert COSTS[list(found)].sum() <= budget
    everyone = (
        layers
        for layers in itertools.product(range(LAYERS + 1), repeat=5)
        if COSTS[list(layers)].sum() <= budget and total.is_possible(layers)
    )
    best = min(total.fitted(layers, 0.9)[0] for layers in everyone)
    assert best <= total.fitted(found, 0.9)[0] <= 1.5 * best
    assert total.fitted(found, 0.9)[0] < total.fitted(start, 0.9)[0] / 2

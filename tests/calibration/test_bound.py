"""Bounds on a risk: how often they are violated, in simulations where the truth is known."""

import math

import numpy as np
import pytest

from adadiff import InputError
from adadiff.calibration.bound import is_below, last_safe, least_samples, upper_bound

DELTA = 0.1
TRIALS = 200


def draw(kind, rng, n, mean):
    """Losses in [0, 1] of this mean: rarely 1, evenly spread, or nearly all alike."""
    if kind == "rare":
        return (rng.random(n) < mean).astype(float)
    if kind == "even":
        return rng.random(n) * 2 * mean
    return rng.beta(50 * mean, 50 * (1 - mean), n)


def allowed(trials, delta):
    """So many violations in so many trials are likely where each has probability delta: three standard errors more."""
    return trials * delta + 3 * math.sqrt(trials * delta * (1 - delta))


@pytest.mark.parametrize("kind", ["rare", "even", "alike"])
@pytest.mark.parametrize("mean", [0.05, 0.3])
def test_the_bound_is_violated_at_most_as_often_as_promised(kind, mean):
    rng = np.random.default_rng(0)
    bounds = np.array([upper_bound(draw(kind, rng, 150, mean), DELTA) for _ in range(TRIALS)])
    assert (bounds < mean).sum() <= allowed(TRIALS, DELTA)
    assert bounds.mean() < mean + 0.15


def test_a_bound_is_where_the_test_turns():
    losses = np.random.default_rng(1).random(200) * 0.2
    bound = upper_bound(losses, DELTA)
    assert is_below(losses, bound + 1e-6, DELTA)
    assert not is_below(losses, bound - 1e-6, DELTA)
    assert upper_bound(losses[:100], DELTA) > bound
    assert upper_bound(losses, 0.01) > bound
    assert upper_bound(np.ones(5), DELTA) == 1


def test_the_money_is_that_of_a_bettor_step_by_step():
    losses = np.random.default_rng(2).random(60) * 0.3
    money, most, seen = 1.0, 0.0, []
    for loss in losses:
        if seen:
            means = [(0.5 + sum(seen[: j + 1])) / (j + 2) for j in range(len(seen))]
            variance = (0.25 + sum((x - m) ** 2 for x, m in zip(seen, means, strict=True))) / (len(seen) + 1)
        else:
            variance = 0.25
        stake = min(1, math.sqrt(2 * math.log(1 / DELTA) / (60 * variance)))
        money *= 1 + stake * (0.25 - loss)
        most = max(most, money)
        seen.append(loss)
    assert most > 1 / DELTA
    assert is_below(losses, 0.25, DELTA)


def test_learn_then_test_over_simulated_calibrations():
    """Rules of growing risk: the chosen one's true risk is above the level in at most delta of the calibrations."""
    risks, level = np.linspace(0.02, 0.3, 15), 0.12
    violations, chosen = 0, []
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        difficulty = rng.random(200)  # the same samples go through all the rules
        position = last_safe((np.clip(2 * risk * difficulty, 0, 1) for risk in risks), level, DELTA)
        chosen.append(-1 if position is None else position)
        violations += position is not None and risks[position] > level
    assert violations <= allowed(TRIALS, DELTA)
    assert np.median(risks[chosen]) > 0.08


def test_testing_stops_at_the_first_failure():
    tried = []

    def rules():
        for k, mean in enumerate((0.0, 0.01, 0.9, 0.0)):
            tried.append(k)
            yield np.full(300, mean)

    assert last_safe(rules(), 0.1, DELTA) == 1
    assert tried == [0, 1, 2]
    assert last_safe([np.full(300, 0.9)], 0.1, DELTA) is None


def test_least_samples_are_the_least():
    least = least_samples(0.1, 0.05)
    assert is_below(np.zeros(least), 0.1, 0.05)
    assert not is_below(np.zeros(least - 1), 0.1, 0.05)
    assert least_samples(0.02, 0.05) > least
    with pytest.raises(InputError, match="request a larger error"):
        least_samples(1e-6, 0.05)

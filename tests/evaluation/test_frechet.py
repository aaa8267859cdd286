"""Fréchet distance against closed forms."""

import numpy as np
import pytest

from adadiff.evaluation.frechet import frechet_distance


def test_of_shifted_and_scaled_gaussians_is_the_closed_form():
    x = np.random.default_rng(0).normal(size=(500, 6))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x + 3, x) == pytest.approx(9 * 6, rel=1e-6)
    spread = np.trace(np.cov(x, rowvar=False))
    assert frechet_distance(2.5 * (x - x.mean(0)), x - x.mean(0)) == pytest.approx((2.5 - 1) ** 2 * spread, rel=1e-6)


def test_of_independent_features_is_the_sum_over_features():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(400, 1)), rng.normal(2, 3, size=(300, 1))
    wanted = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    with_constant = [np.hstack([z, z * 0 + 1e-9 * rng.normal(size=z.shape)]) for z in (x, y)]
    assert frechet_distance(*with_constant) == pytest.approx(wanted, rel=1e-4)

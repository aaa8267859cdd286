"""The metrics against closed forms, scipy, and loops over all pairs."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy.linalg import sqrtm

from adadiff import InputError
from adadiff.evaluation.metrics import bootstrap, frechet_distance, kernel_distance, precision_recall


def two_sets(seed, features=6, n=40, m=55):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(features, features))
    return rng.normal(size=(n, features)) @ mix, rng.normal(0.5, 1.5, size=(m, features)) @ mix


def test_frechet_distance_of_shifted_and_scaled_gaussians_is_the_closed_form():
    x = np.random.default_rng(0).normal(size=(500, 6))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x + 3, x) == pytest.approx(9 * 6, rel=1e-6)
    spread = np.trace(np.cov(x, rowvar=False))
    assert frechet_distance(2.5 * (x - x.mean(0)), x - x.mean(0)) == pytest.approx((2.5 - 1) ** 2 * spread, rel=1e-6)


def test_frechet_distance_of_independent_features_is_the_sum_over_features():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(400, 1)), rng.normal(2, 3, size=(300, 1))
    wanted = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    with_constant = [np.hstack([z, z * 0 + 1e-9 * rng.normal(size=z.shape)]) for z in (x, y)]
    assert frechet_distance(*with_constant) == pytest.approx(wanted, rel=1e-4)


@hypothesis.given(st.integers(0, 1000), st.integers(1, 30))
def test_frechet_distance_is_that_of_scipys_matrix_root(seed, features):
    x, y = two_sets(seed, features)
    first, second = (np.cov(z, rowvar=False).reshape(features, features) for z in (x, y))
    root = np.trace(np.real(sqrtm(first @ second)))
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * root
    assert frechet_distance(x, y) == pytest.approx(wanted, rel=1e-6)


@hypothesis.given(st.integers(0, 1000))
def test_kernel_distance_is_that_of_a_loop_over_pairs(seed):
    x, y = two_sets(seed, n=9, m=7)

    def kernel(a, b):
        return (a @ b / 6 + 1) ** 3

    def among(z):
        return np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])

    wanted = among(x) + among(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(wanted, rel=1e-9)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(2)
    estimates = [kernel_distance(rng.normal(size=(8, 3)), rng.normal(size=(8, 3))) for _ in range(2000)]
    assert abs(np.mean(estimates)) < 4 * np.std(estimates) / np.sqrt(2000)
    assert np.mean(np.array(estimates) < 0) > 0.3


@hypothesis.given(st.integers(0, 1000))
def test_precision_and_recall_are_those_of_a_loop_over_pairs(seed):
    x, y = two_sets(seed, features=2, n=20, m=25)

    def share(points, others):
        inside = 0
        for point in points:
            for other in others:
                radius = sorted(np.linalg.norm(other - third) for third in others)[3]  # the first is itself
                if np.linalg.norm(point - other) <= radius:
                    inside += 1
                    break
        return inside / len(points)

    assert precision_recall(x, y) == (share(x, y), share(y, x))


def test_precision_of_a_mode_and_recall_of_what_it_misses():
    rng = np.random.default_rng(3)
    real = np.concatenate([rng.normal(0, 1, (200, 2)), rng.normal(100, 1, (200, 2))])
    precision, recall = precision_recall(rng.normal(0, 1, (400, 2)), real)
    assert precision > 0.9
    assert 0.4 < recall <= 0.5


def test_bootstrap_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(4).normal(0, 3, size=(400, 1))
    assert bootstrap(lambda part: part.mean(), x, repeats=400) == pytest.approx(3 / 20, rel=0.15)


@pytest.mark.parametrize(
    ("metric", "least"),
    [(frechet_distance, 7), (kernel_distance, 2), (precision_recall, 4)],
    ids=["frechet", "kernel", "precision and recall"],
)
def test_too_few_images_are_named(metric, least):
    x, y = two_sets(0)
    metric(x[:least], y)
    with pytest.raises(InputError, match=f"{least - 1} images are too few .* at least {least} are needed"):
        metric(x[: least - 1], y)
    with pytest.raises(InputError, match="too few"):
        metric(x, y[: least - 1])

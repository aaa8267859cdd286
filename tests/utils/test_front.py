"""The Pareto front against its definition."""

import numpy as np
import pytest

from adadiff.utils.front import pareto_front


@pytest.mark.parametrize("seed", range(5))
def test_nothing_beats_the_pareto_front(seed):
    points = [tuple(point) for point in np.random.default_rng(seed).random((30, 2)).tolist()]
    beaten = [p for p in points if any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)]
    assert pareto_front(points) == sorted(set(points) - set(beaten))

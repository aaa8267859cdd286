"""Newton's terms against polynomials fitted by numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adadiff.policies import LINE
from adadiff.runtime import Corrections, RowMemory, newton_terms

gaps = st.integers(1, 9)


@given(gap=gaps, before=gaps, earlier=gaps, measured=st.tuples(*[st.floats(-3, 3)] * 3))
def test_so_many_terms_are_the_polynomial_through_as_many_measurements(gap, before, earlier, measured):
    terms = newton_terms(gap, before, earlier) @ np.array(measured)
    steps = np.array([0, -before, -before - earlier])
    for order in range(3):
        polynomial = np.polyfit(steps[: order + 1], measured[: order + 1], order)
        assert terms[: order + 1].sum().item() == pytest.approx(np.polyval(polynomial, gap), abs=1e-6)


@pytest.mark.parametrize(("before", "earlier", "terms"), [(0, 0, 1), (2, 0, 2)])
def test_terms_that_lack_measurements_are_0(before, earlier, terms):
    found = newton_terms(3, before, earlier)
    assert found.any(1).tolist() == [k < terms for k in range(3)]


def test_rows_are_carried_on_by_their_own_weights():
    """A correction that moves along a parabola, carried on by a constant, along a line, and along the parabola."""
    corrections, rows = Corrections(RowMemory(3)), torch.arange(3)

    def moving(step):
        return torch.full((3, 1, 2, 2), 1.0 + 2 * step + 0.5 * step**2)

    for step in (0, 1, 3, 4):  # the last three count
        corrections.measure(1, rows, torch.full((3,), step), moving(step))
    weights = torch.tensor([(1.0, 0.0, 0.0), LINE, (1.0, 1.0, 1.0)])
    found = corrections.correct(1, rows, torch.full((3,), 6), torch.zeros(3, 1, 2, 2), weights)
    last, before = moving(4)[0], moving(3)[0]
    for row, wanted in enumerate((last, last + 2 * (last - before), moving(6)[0])):
        torch.testing.assert_close(found[row], wanted)

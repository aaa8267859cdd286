"""The search for a policy within a compute budget, against kinds of which it is known what they can spend."""

from __future__ import annotations

import numpy as np
import pytest

from adadiff import NeverExit
from adadiff.calibration.kinds import CorrectedSchedule, Kind
from adadiff.calibration.result import Point
from adadiff.calibration.search import TOLERANCE, Search


class LadderSearch(Search):
    """Measures the compute of a kind whose policies spend the nearest of a few fractions, and a bit more."""

    def __init__(self, computes: tuple[float, ...], more: float) -> None:
        self.computes, self.more = computes, more
        self.least_compute = {CorrectedSchedule.name: min(computes)}

    def _at(self, kind: Kind, compute: float) -> Point:
        nearest = min(self.computes, key=lambda each: abs(each - compute))
        return Point(kind.name, NeverExit(), nearest + self.more, np.zeros(2))


@pytest.mark.parametrize("more", [0.0, 0.02])
@pytest.mark.parametrize("compute", [0.3, 0.45, 0.55, 0.7, 0.71, 0.735, 0.99])
def test_a_budget_is_not_exceeded_where_a_policy_is_within_it(compute: float, more: float):
    computes = (0.1, 0.25, 0.5, 0.73, 0.74)
    found = LadderSearch(computes, more).meeting(CorrectedSchedule(), compute).compute
    assert found == max(each + more for each in computes if each + more <= compute + TOLERANCE)


def test_a_budget_below_all_policies_takes_the_cheapest():
    assert LadderSearch((0.1, 0.5), 0.02).meeting(CorrectedSchedule(), 0.11).compute == pytest.approx(0.12)

"""The search for a policy within a compute budget, against kinds of which it is known what they can spend."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from adadiff import CorrectedScheduleExit, NeverExit, ScheduleExit
from adadiff.calibration import refine
from adadiff.calibration.goal import Goal
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


class RefiningSearch(Search):
    """Finds one policy for any compute, and samples with refined ones at given errors."""

    optimising, choosing, refine = range(8), range(4, 8), True

    def __init__(self, found: ScheduleExit, errors: dict[ScheduleExit, float]) -> None:
        self.found, self.errors = found, errors
        self.trials = SimpleNamespace(
            sampling=SimpleNamespace(context=lambda: SimpleNamespace(depth=4)), sample=self.sample
        )

    def for_compute(self, compute: float) -> Point:
        return self.sample("", self.found, self.choosing)

    def for_speedup(self, speedup: float) -> Point:
        return self.for_compute(1 / speedup)

    def sample(self, kind: str, policy: ScheduleExit, numbers: range) -> Point:
        assert numbers == self.choosing
        return Point(kind, policy, 0.5, np.full(4, self.errors[policy]))


def in_rounds(*errors: float) -> tuple[list[CorrectedScheduleExit], dict[ScheduleExit, float]]:
    """Corrected schedules, each refined to the next, and what they err."""
    policies = [CorrectedScheduleExit((4, 1), ((1, 1, 0), (number, 1, 0))) for number in range(len(errors))]
    return policies, dict(zip(policies, errors, strict=True))


@pytest.mark.parametrize("goal", [Goal(compute=0.5), Goal(speedup=2)])
@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ((0.1, 0.2, 0.01), 0),  # worse: it is not taken
        ((0.1, 0.08, 0.01), 1),  # a little better: no other round
        ((0.1, 0.04, 0.03, 0.01), 2),
        ((0.1, 0.04, 0.01, 0.004, 0.001), 3),  # the most rounds
    ],
)
def test_policies_are_refined_as_long_as_it_helps(
    goal: Goal, errors: tuple[float, ...], best: int, monkeypatch: pytest.MonkeyPatch
):
    policies, erring = in_rounds(*errors)
    monkeypatch.setattr(refine, "refined", lambda trials, policy, depth, numbers: policies[policies.index(policy) + 1])
    assert RefiningSearch(policies[0], erring).for_goal(goal, range(8, 16)).policy == policies[best]


def test_policies_without_corrections_are_not_refined(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(refine, "refined", None)
    plain = ScheduleExit((4, 1))
    assert RefiningSearch(plain, {plain: 0.1}).for_goal(Goal(compute=0.5), range(8, 16)).policy is plain


def test_policies_are_refined_only_if_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(refine, "refined", None)
    policies, erring = in_rounds(0.1, 0.04)
    finding = RefiningSearch(policies[0], erring)
    finding.refine = False
    assert finding.for_goal(Goal(compute=0.5), range(8, 16)).policy is policies[0]

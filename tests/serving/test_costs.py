"""Costs of calls, and what is concluded from them, against closed forms and slow simulations."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adadiff.serving.batcher import RULES
from adadiff.serving.costs import (
    Batching,
    CallCosts,
    Profile,
    WorkEstimate,
    fastest_batching,
    measure_costs,
    simulated_seconds,
)
from tests.serving.traffic import DEPTH, class_pipeline

LINEAR = CallCosts(rows=(1, 64), first=(0.002, 0.128), layer=(0.001, 0.064))
FLAT = CallCosts(rows=(1, 64), first=(0.002, 0.002), layer=(0.001, 0.001))


@given(st.lists(st.integers(0, 9), max_size=40))
def test_where_seconds_are_by_row_they_add_up(layers: list[int]) -> None:
    expected = sum(0.002 + 0.001 * (own - 1) for own in layers if own)
    assert LINEAR.seconds(layers) == pytest.approx(expected)


@given(st.lists(st.integers(0, 9), max_size=40))
def test_where_rows_are_free_the_deepest_decides(layers: list[int]) -> None:
    deepest = max(layers, default=0)
    assert FLAT.seconds(layers) == pytest.approx(0.001 + 0.001 * deepest if deepest else 0)


def test_the_engines_own_work_is_by_call_and_row() -> None:
    costs = replace(LINEAR, own=0.01, own_row=0.001)
    assert costs.seconds([0, 3, 0, 9]) == pytest.approx(0.014 + LINEAR.seconds([3, 9]))
    assert costs.seconds([0] * 5) == pytest.approx(0.015)
    assert costs.seconds([]) == 0


def test_seconds_beyond_the_measured_rows_grow_with_them() -> None:
    assert FLAT.seconds([3] * 128) == pytest.approx(2 * FLAT.seconds([3] * 64))


def test_measured_costs_cover_the_rows_and_rise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adadiff.serving.costs.LONG_CALL", math.inf)  # a machine may stand still for half a second
    costs = measure_costs(class_pipeline(), most_rows=6)
    assert costs.rows == (1, 3, 6)
    for seconds in (costs.first, costs.layer):
        assert list(seconds) == sorted(seconds)
    assert 0 < costs.seconds([0]) < costs.seconds([1]) <= costs.seconds([DEPTH] * 6)


def test_simulation_without_choice_is_the_sum_of_its_calls() -> None:
    """As many places as slots and the same depth everywhere: every tick runs all samples."""
    profile = Profile((9,) * 5, (True,) * 5)
    seconds = simulated_seconds(LINEAR, profile, 9, slots=4, batching=Batching("mixed", 4), images=20)
    # 4 samples finish within every 5 ticks, the first of them after 2
    assert seconds == pytest.approx(24 * LINEAR.seconds([9] * 8), rel=0.1)


def test_rule_follows_the_costs() -> None:
    irregular = Profile((9, 9, 1, 9, 1, 1), (False,) * 6)
    by_call = CallCosts(rows=(1, 64), first=(0.1, 0.1), layer=(0.001, 0.001))

    def gain(costs: CallCosts) -> float:
        mixed, barrier = (simulated_seconds(costs, irregular, 9, 32, Batching(rule, 32), 96) for rule in RULES)
        return mixed / barrier

    assert gain(FLAT) > 1.3  # samples share their deep calls
    assert gain(LINEAR) == pytest.approx(1, rel=0.1)
    assert gain(by_call) < 0.8  # calls are the cost, and waiting makes more of them
    chosen = [fastest_batching(costs, irregular, 9, 32, 32) for costs in (FLAT, LINEAR, by_call)]
    assert chosen == [Batching("barrier", 32), Batching("barrier", 32), Batching("mixed", 32)]


def test_calls_are_as_narrow_as_is_fastest() -> None:
    """Twice the seconds a row beyond 8 rows: a guided sample has two."""
    seconds = (0.001, 0.008, 0.064)
    cached = CallCosts(rows=(1, 8, 32), first=seconds, layer=seconds)
    guided = Profile((9, 1) * 5, (True,) * 10)
    assert fastest_batching(cached, guided, 9, slots=16, width=16).width == 4
    busy = replace(cached, own=0.1)  # what every call costs besides is shared by more samples in wider ones
    assert fastest_batching(busy, guided, 9, slots=16, width=16).width == 16


def test_work_of_an_image_is_its_share_of_full_calls() -> None:
    estimate = WorkEstimate(LINEAR, width=8)
    ahead = estimate.ahead(Profile((9, 1, 0), (True, False, False)))
    assert ahead == pytest.approx((2 * 0.010 + 0.002, 0.002, 0))


def test_correction_follows_the_speed_seen() -> None:
    estimate, seen = WorkEstimate(LINEAR, width=8), 0.0
    while seen < 10 * WorkEstimate.HALF_LIFE:
        estimate.observe(work=0.1, seconds=0.3)
        seen += 0.3
    assert estimate.correction == pytest.approx(3, rel=0.01)


def test_correction_is_that_of_all_seconds_where_short_ticks_are_slower() -> None:
    """Ticks at shallow steps take three times as long as expected, and there are four of them for each deep one."""
    estimate = WorkEstimate(LINEAR, width=8)
    ticks = [(0.1, 0.1)] + [(0.005, 0.015)] * 4
    for _ in range(200):
        for work, seconds in ticks:
            estimate.observe(work, seconds)
    assert estimate.correction == pytest.approx(0.16 / 0.12, rel=0.02)


def test_one_long_tick_hardly_changes_the_correction() -> None:
    estimate = WorkEstimate(LINEAR, width=8)
    estimate.observe(work=0.001, seconds=5)
    assert 1 < estimate.correction < 1.2

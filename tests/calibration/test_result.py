"""What a calibration says of fewer steps, against losses made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from adadiff import NeverExit
from adadiff.calibration import Calibration, Goal, calibration_table
from adadiff.calibration.result import Point
from adadiff.policies.stored import CalibrationContext

NOISE = np.linspace(-1, 1, 16)


def result(losses: NDArray[np.floating], fewer: dict[float, NDArray[np.floating]]) -> Calibration:
    """A calibration whose policy has these losses at 60% of the compute, beside fewer steps, by their compute."""
    policy = Point("corrected schedule", NeverExit(), 0.6, losses)
    points = tuple(Point("fewer", NeverExit(), compute, each) for compute, each in fewer.items())
    context = CalibrationContext(weights=None, depth=4, scheduler="ddim", steps=10, guidance_scale=1.0)
    return Calibration(Goal(compute=0.6), (policy,), policy, policy, 0.5, 1.6, context, "squared error", points)


@pytest.mark.parametrize(
    ("error", "spread", "beats"),
    [
        (0.10, 0.0, True),
        (0.14, 0.0, True),  # between the two numbers of steps: 0.15 at 60% of the compute
        (0.16, 0.0, False),
        (0.14, 0.1, False),  # less, but by chance as likely as not
        (0.10, 0.05, True),
    ],
)
def test_a_policy_beats_fewer_steps_if_it_errs_less_by_two_standard_errors(error: float, spread: float, beats: bool):
    fewer = {0.5: np.full(16, 0.2), 0.7: np.full(16, 0.1)}
    assert result(error + spread * NOISE, fewer).beats_fewer_steps is beats


def test_what_samples_have_in_common_is_no_chance():
    common = 0.2 + 0.1 * NOISE
    assert result(common - 0.01, {0.6: common}).beats_fewer_steps is True


def test_the_full_model_follows_the_most_steps():
    assert result(np.full(16, 0.09), {0.5: np.full(16, 0.1)}).beats_fewer_steps is False  # 0.08 there
    assert result(np.full(16, 0.07), {0.5: np.full(16, 0.1)}).beats_fewer_steps is True


def test_nothing_is_said_where_fewer_steps_were_not_measured():
    assert result(NOISE**2, {}).beats_fewer_steps is None


def test_an_error_at_its_limit_is_at_least_1():
    def row(losses: NDArray[np.floating]) -> str:
        return str(next(iter(calibration_table(result(losses, {})).columns[2].cells)))

    assert row(np.ones(16)) == "≥ 1"
    assert row(np.where(NOISE < 0, 1.0, 0.5)) == "0.750 ± 0.065"
    assert row(np.full(16, 1.5)) == "1.5 ± 0"  # as errors that are not limited

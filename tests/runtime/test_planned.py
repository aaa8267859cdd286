"""The layers that a policy plans against those that sampling runs; their FLOPs are in tests/sampling/test_plan.py."""

from __future__ import annotations

import pytest

from adadiff import CorrectedScheduleExit, ExitPolicy, FixedExit, NeverExit, ScheduleExit, ThresholdExit
from adadiff.policies import TableExit
from adadiff.runtime import planned_layers
from adadiff.sampling import Guidance

STEPS, DEPTH = 4, 5


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.25, 0.75)])
@pytest.mark.parametrize(
    "policy", [NeverExit(), FixedExit(2), ScheduleExit((5, 1, 3, 5)), CorrectedScheduleExit((5, 0, 5, 2))]
)
def test_planned_layers_are_those_run(class_pipeline, policy: ExitPolicy, interval: tuple[float, float], tied: bool):
    guidance = Guidance(2.0, interval, tied)
    guided = [guidance.applies(step, STEPS) for step in range(STEPS)]
    trace = class_pipeline(class_labels=[0], num_inference_steps=STEPS, policy=policy, guidance=guidance).trace
    deeper = trace.exit_layers.maximum(trace.unconditional_exit_layers)[:, 0]
    assert planned_layers(policy, DEPTH, guided, tied) == tuple(deeper.tolist())


def test_planned_layers_of_thresholds_are_the_most_that_can_run():
    table = TableExit(((0.0, 0.0, 0.0, 0.0), (0.1, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (0.5, 0.5, 0.5, 0.5)))
    assert planned_layers(table, DEPTH, [False] * STEPS) == (5, 2, 4, 5)
    assert planned_layers(ThresholdExit(0.9), DEPTH, [True] * STEPS) == (5, 5, 5, 5)

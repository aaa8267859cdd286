"""The depth of a plan: within its share of the compute, recorded once for each setting."""

from dataclasses import replace

import pytest

from adadiff import NeverExit
from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.sampling import Guidance, InternalGuidance
from adadiff.tuning.depth import DepthPlanner
from adadiff.tuning.space import Choices

GUIDANCES = [Guidance(), Guidance(3.0, (0.25, 0.75)), Guidance(2.0, internal=InternalGuidance(2, 0.5, (0.0, 0.5)))]


@pytest.fixture
def planner(tunable, tmp_path):
    return DepthPlanner(tunable, tmp_path, seed=0)


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_a_plan_takes_its_share_and_no_more(planner, guidance):
    choices = Choices(8, "ddim", "leading", guidance, depth=0.6)
    full = planner.model.flops(choices.with_all_layers)
    assert 0.4 < planner.model.flops(planner.plan(choices)) / full <= 0.6
    assert planner.model.flops(planner.plan(choices, 0.4 * full)) <= 0.4 * full
    assert planner.plan(replace(choices, depth=1.0)).policy == NeverExit()


@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("depth", [0.4, 0.6, 0.8])
def test_the_last_step_runs_all_layers(planner, guidance, depth):
    plan = planner.plan(Choices(8, "dpm-solver++", "leading", guidance, depth))
    assert plan.policy.layers[-1] == planner.model.depth


def test_exits_are_recorded_once_for_each_setting(planner, tunable, tmp_path, monkeypatch):
    recorded, original = [], AdaptiveSampling.record

    def recording(self, numbers):
        recorded.append(self.steps)
        return original(self, numbers)

    monkeypatch.setattr(AdaptiveSampling, "record", recording)
    choices = Choices(5, "ddim", "leading", Guidance(), depth=0.5)
    plans = [planner.plan(choices), planner.plan(replace(choices, depth=0.7)), planner.plan(replace(choices, steps=6))]
    assert recorded == [5, 6]
    again = DepthPlanner(tunable, tmp_path, seed=0)  # as after an interruption
    assert again.plan(choices) == plans[0]
    assert recorded == [5, 6]


def test_errors_count_the_more_the_later_the_step_is(planner):
    """In geometric progression, over what the influence says, up to the last step, which runs all layers."""
    choices = Choices(6, "ddim", "leading", Guidance(), depth=0.5)
    full = choices.with_all_layers
    weighted = planner._problem(full, planner.model.sampling(full, 0)).influence
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adadiff.tuning.depth.LATE_STEPS", 1.0)
        again = DepthPlanner(planner.model, planner.folder, planner.seed)
        plain = again._problem(full, planner.model.sampling(full, 0)).influence
    assert (weighted / plain)[:-1].tolist() == pytest.approx([20 ** (step / 5) for step in range(5)], rel=1e-5)
    assert weighted[-1] == 10_000 * weighted[:-1].max()

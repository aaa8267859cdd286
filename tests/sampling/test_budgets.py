"""A model's plans by compute: one base for all, and what a folder of several plans keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adadiff import AdaDiffPipeline, CorrectedScheduleExit, NeverExit, ThresholdExit
from adadiff.policies.stored import StoredPolicy, save_policies
from adadiff.sampling import Guidance, SamplingPlan
from adadiff.sampling.budgets import Budgets
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.utils.errors import InputError

OWN = SamplingPlan(6, CorrectedScheduleExit((5, 1, 5, 1, 5, 1)), Guidance(2.0), "ddim", "trailing")
LESS = SamplingPlan(4, CorrectedScheduleExit((5, 0, 0, 0)), Guidance(3.0), "ddpm")
MORE = SamplingPlan(9, CorrectedScheduleExit((5, 5, 5, 5, 5, 5, 5, 1, 1)), Guidance(3.0), "ddpm")


def save(pipeline: AdaDiffPipeline, folder: Path, *plans: SamplingPlan) -> None:
    """Save a model with plans, found for 0.4 of the compute, 0.41, ..., which takes 10 guided steps by default."""
    pipeline.save_pretrained(folder)
    SamplingDefaults("ddpm", 10, guidance_scale=3.0).save(folder)
    stored = [
        pipeline.with_plan(plan).own_settings.stored.calibrated_for.stored(plan.policy, {"compute": 0.4 + k / 100}, {})
        for k, plan in enumerate(plans)
    ]
    if stored:
        save_policies(stored, folder)


@pytest.fixture
def budgets(class_pipeline, tmp_path) -> Budgets:
    save(class_pipeline, tmp_path, OWN, LESS, MORE)
    return Budgets(AdaDiffPipeline.from_pretrained(tmp_path))


def test_every_plan_is_named_by_its_compute_over_the_full_model(budgets, class_pipeline):
    parts = class_pipeline.transformer.part_flops
    assert budgets.full_flops == 10 * 2 * parts.full
    expected = [plan.flops(parts) / budgets.full_flops for plan in (LESS, OWN, MORE)]
    assert list(budgets.computes.values()) == [*expected, 1.0]
    assert list(budgets.plans) == [round(compute, 2) for compute in expected] + [1.0]
    for plan, pipeline in zip((LESS, OWN, MORE), budgets.plans.values(), strict=False):
        chosen = pipeline.sampling_settings()
        assert (chosen.steps, chosen.policy, chosen.guidance) == (plan.steps, plan.policy, plan.guidance)
    full = budgets.plans[1.0].sampling_settings()
    assert (full.steps, full.policy, full.guidance) == (10, NeverExit(), Guidance(3.0))


def test_a_budget_takes_the_most_expensive_plan_within_it(budgets):
    less, own, more, full = budgets.plans
    assert [budgets.named(budget) for budget in (less, own - 0.02, own, own + 0.004, more + 0.01, 0.99, 1.0)] == [
        less, less, own, own, more, more, full,
    ]  # fmt: skip
    with pytest.raises(InputError, match=f"at most 0.05 of the full model's compute: the least on offer is {less:g}$"):
        budgets.named(0.05)


def test_plans_keep_to_their_own_schedulers(budgets):
    less, own, _, full = budgets.plans.values()
    assert (type(own.scheduler).__name__, own.scheduler.config.timestep_spacing) == ("DDIMScheduler", "trailing")
    for pipeline in (less, full):
        assert type(pipeline.scheduler).__name__ == "DDPMScheduler"
        assert pipeline.scheduler.config.timestep_spacing == "leading"


def test_a_folder_keeps_its_plans_where_it_is_saved_again(class_pipeline, tmp_path):
    save(class_pipeline, tmp_path / "one", OWN, LESS)
    pipeline = AdaDiffPipeline.from_pretrained(tmp_path / "one")
    pipeline.save_pretrained(tmp_path / "two")
    again = AdaDiffPipeline.from_pretrained(tmp_path / "two")
    assert again.own_settings.stored.plan == OWN
    assert {name: stored.plan for name, stored in again.own_settings.others.items()} == {"exit_policy-0.41.json": LESS}
    assert list(Budgets(again).plans) == list(Budgets(pipeline).plans)


def test_all_plans_of_a_folder_are_for_its_weights(class_pipeline, tmp_path):
    save(class_pipeline, tmp_path, OWN, LESS)
    other = json.loads((tmp_path / "exit_policy-0.41.json").read_text())
    other["calibrated_for"]["weights"] = 64 * "0"
    del other["sha256"]
    (tmp_path / "exit_policy-0.41.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"exit_policy-0.41.json belongs to other weights"):
        AdaDiffPipeline.from_pretrained(tmp_path)


def test_a_folder_without_defaults_has_the_steps_and_guidance_of_its_plan(class_pipeline):
    budgets = Budgets(class_pipeline.with_plan(OWN))
    assert budgets.full_flops == 6 * 2 * class_pipeline.transformer.part_flops.full
    assert len(budgets.plans) == 2
    assert list(Budgets(class_pipeline).plans) == [1.0]


def test_what_thresholds_take_is_what_the_calibration_measured(class_pipeline, tmp_path):
    save(class_pipeline, tmp_path)
    plan = SamplingPlan(5, ThresholdExit(0.5), Guidance(3.0))
    context = class_pipeline.with_plan(plan).own_settings.stored.calibrated_for
    StoredPolicy(plan.policy, context, {"compute": 0.6}, {"compute": 0.62}).save(tmp_path)
    budgets = Budgets(AdaDiffPipeline.from_pretrained(tmp_path))
    assert budgets.computes == {0.31: pytest.approx(0.31), 1.0: 1.0}

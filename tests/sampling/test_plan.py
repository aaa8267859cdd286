"""Sampling plans: their FLOPs against what sampling spends, their stored form, and pipelines that follow them."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adadiff import AdaDiffPipeline
from adadiff.policies import CorrectedScheduleExit, FixedExit, ScheduleExit, ThresholdExit
from adadiff.sampling import Guidance, InternalGuidance, SamplingPlan
from adadiff.sampling.plan import plan_from
from adadiff.utils.errors import InputError

PLAN = SamplingPlan(
    6,
    CorrectedScheduleExit((5, 0, 5, 1, 3, 5)),
    Guidance(2.0, (0.25, 0.75), internal=InternalGuidance(3, 0.5, (0.0, 0.5))),
    "ddim",
    "trailing",
)

fractions = st.sampled_from([0.0, 0.2, 0.25, 0.4, 0.5, 0.75, 0.9, 1.0])
intervals = st.tuples(fractions, fractions).filter(lambda pair: pair[0] < pair[1])
internals = st.none() | st.builds(InternalGuidance, st.integers(1, 4), st.just(0.5), intervals)
layers = st.lists(st.integers(0, 5), min_size=6, max_size=6).map(lambda rest: (5, *rest[1:]))
policies = layers.map(CorrectedScheduleExit) | st.lists(st.integers(1, 5), min_size=6, max_size=6).map(
    lambda given: ScheduleExit(tuple(given))
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(policy=policies | st.just(FixedExit(2)), interval=intervals, internal=internals, tied=st.booleans())
def test_the_flops_of_a_plan_are_those_that_sampling_spends(class_pipeline, policy, interval, internal, tied):
    plan = SamplingPlan(6, policy, Guidance(2.0, interval, tied, internal))
    trace = class_pipeline(class_labels=[0, 1], num_inference_steps=6, policy=policy, guidance=plan.guidance).trace
    assert trace.flops.sum(0).tolist() == [plan.flops(class_pipeline.transformer.part_flops)] * 2


def test_the_flops_of_thresholds_are_known_by_sampling_alone(class_pipeline):
    with pytest.raises(InputError, match="ThresholdExit depend on the samples"):
        SamplingPlan(6, ThresholdExit(0.5)).flops(class_pipeline.transformer.part_flops)


def test_a_described_plan_is_made_again():
    assert plan_from(json.loads(json.dumps(PLAN.describe()))) == PLAN
    with pytest.raises(InputError, match="choose leading, linspace, trailing"):
        SamplingPlan(6, spacing="even")


def test_a_pipeline_follows_its_plan_and_a_saved_folder_keeps_it(class_pipeline, tmp_path, caplog):
    def sample(pipe, **arguments):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe(class_labels=[0, 1], generator=generator, output_type="pt", **arguments)

    planned = class_pipeline.with_plan(PLAN)
    assert planned.scheduler.config.timestep_spacing == "trailing"
    output = sample(planned)
    assert output.trace.exit_layers[:, 0].tolist() == [5, 0, 5, 1, 3, 5]
    assert output.trace.guided[:, 0].tolist() == [False, False, True, True, True, False]
    expected = sample(
        class_pipeline.with_parts(scheduler=planned.scheduler),
        num_inference_steps=6,
        policy=PLAN.policy,
        guidance=PLAN.guidance,
    )
    assert torch.equal(output.images, expected.images)

    planned.save_pretrained(tmp_path)
    again = AdaDiffPipeline.from_pretrained(tmp_path)
    assert again.own_settings.stored.plan == PLAN
    with caplog.at_level(logging.WARNING, "adadiff"):
        assert torch.equal(sample(again).images, output.images)
        assert not caplog.messages
        sample(again, guidance_interval=(0.0, 1.0))
    assert "guidance interval (0.0, 1.0) in place of (0.25, 0.75)" in caplog.text


def test_a_plan_that_does_not_fit_is_an_error(class_pipeline):
    for plan, message in (
        (SamplingPlan(5, PLAN.policy), "6 exit layers: give one per step, 5"),
        (SamplingPlan(0), "between 1 and"),
        (SamplingPlan(4, scheduler="dimm"), "did you mean ddim"),
        (SamplingPlan(4, guidance=Guidance(internal=InternalGuidance(5, 1.0))), "layers before the last are 1 to 4"),
    ):
        with pytest.raises(InputError, match=message):
            class_pipeline.with_plan(plan)

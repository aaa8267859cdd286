"""Samples at different steps and plans in one call, each against the same image sampled alone."""

from __future__ import annotations

import random

import pytest
import torch

from adadiff import AdaDiffPipeline
from adadiff.baselines import FirstBlockCaching, SkipCaching
from adadiff.sampling import Guidance, SamplingPlan
from adadiff.serving.conditions import Condition, ConditionEncoder
from adadiff.serving.plans import Plans
from adadiff.serving.sampler import Sample, Sampler
from tests.serving.traffic import alone, class_pipeline, corrected, schedule_plans, threshold_plans

SLOTS = 12


def begin(sampler: Sampler, plans: Plans, plan: SamplingPlan, number: int, slot: int, label: int = 1) -> Sample:
    conditions, nothing = ConditionEncoder(sampler.pipeline).tensors(Condition(label, guided=plan.guidance.scale > 1))
    return sampler.begin(number, slot, plans.prepare(plan), 100 + number, conditions, nothing)


def all_alone(
    pipeline: AdaDiffPipeline, plans: list[SamplingPlan], source: random.Random, most: int
) -> list[tuple[Sample, torch.Tensor]]:
    """Run one sample of every plan, up to `most` random ones of them at each tick: the samples and their images."""
    prepared, sampler = Plans(pipeline), Sampler(pipeline, SLOTS)
    waiting = list(enumerate(plans))
    running: list[Sample] = []
    finished = []
    free = list(range(SLOTS))
    while waiting or running:
        while waiting and free and source.random() < 0.7:
            number, plan = waiting.pop(0)
            running.append(begin(sampler, prepared, plan, number, free.pop()))
        if not running:
            continue
        chosen = source.sample(running, min(len(running), source.randint(1, most)))
        sampler.step(chosen)
        for sample in chosen:
            if sample.done:
                finished.append((sample, sampler.pixels(sampler.latents[sample.slot][None])[0]))
                sampler.end([sample])
                running.remove(sample)
                free.append(sample.slot)
    assert len(sampler.rows) == 0
    return finished


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_images_are_those_sampled_alone(seed: int, prediction_type: str) -> None:
    pipeline = class_pipeline(prediction_type)
    plans = [*schedule_plans(), *schedule_plans()]
    random.Random(seed).shuffle(plans)
    finished = all_alone(pipeline, plans, random.Random(seed), SLOTS)
    assert len(finished) == len(plans)
    for sample, image in finished:
        pixels, exits, flops = alone(pipeline, sample.prepared.plan, 100 + sample.number, 1)
        torch.testing.assert_close(image, pixels, atol=1e-5, rtol=0)
        assert tuple(sample.exit_layers) == exits
        assert sample.flops == flops


def test_threshold_policies_decide_as_alone() -> None:
    pipeline = class_pipeline()
    for sample, image in all_alone(pipeline, threshold_plans() * 4, random.Random(0), SLOTS):
        pixels, exits, flops = alone(pipeline, sample.prepared.plan, 100 + sample.number, 1)
        assert len(set(exits)) > 1  # they do depend on the sample
        assert (tuple(sample.exit_layers), sample.flops) == (exits, flops)
        torch.testing.assert_close(image, pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("plan", [*schedule_plans(), *threshold_plans()])
def test_image_is_the_same_to_the_bit_in_a_call_of_its_own(plan: SamplingPlan) -> None:
    pipeline = class_pipeline()
    ((_, image),) = all_alone(pipeline, [plan], random.Random(0), 1)
    assert torch.equal(image, alone(pipeline, plan, 100, 1)[0])


def test_baselines_are_served_too() -> None:
    pipeline = class_pipeline()
    plans = [SamplingPlan(steps, guidance=Guidance(2.0, (0.2, 1.0)), scheduler="ddim") for steps in (5, 8, 11)]
    for baseline in (SkipCaching(pipeline.transformer, 2), FirstBlockCaching(pipeline.transformer, 0.5)):
        caching = pipeline.with_denoiser(baseline)
        for sample, image in all_alone(caching, plans * 2, random.Random(0), SLOTS):
            pixels, exits, flops = alone(caching, sample.prepared.plan, 100 + sample.number, 1)
            torch.testing.assert_close(image, pixels, atol=1e-5, rtol=0)
            assert (tuple(sample.exit_layers), sample.flops) == (exits, flops)


def test_image_is_the_same_to_the_bit_in_reduced_precision() -> None:
    pipeline, plan = class_pipeline(), SamplingPlan(7, corrected(7), Guidance(2.3), "dpm-solver++")
    pipeline.transformer.to(torch.bfloat16)
    ((_, image),) = all_alone(pipeline, [plan], random.Random(0), 1)
    assert torch.equal(image, alone(pipeline, plan, 100, 1)[0])


def test_estimates_end_in_the_image() -> None:
    """The denoised estimate of the last step, where nothing is added after it, is the image."""
    pipeline = class_pipeline()
    plans = [plan for plan in schedule_plans() if plan.scheduler in ("dpm-solver++", "euler")]
    prepared, sampler = Plans(pipeline), Sampler(pipeline, SLOTS)
    samples = [begin(sampler, prepared, plan, number, number) for number, plan in enumerate(plans)]
    while running := [sample for sample in samples if not sample.done]:
        last = [sample for sample in running if sample.step == sample.prepared.evaluations - 1]
        estimates = sampler.step(running, watched=last)
        assert set(estimates) == {sample.number for sample in last}
        for sample in last:
            latents = sampler.latents[sample.slot]
            torch.testing.assert_close(estimates[sample.number], latents, atol=1e-3, rtol=1e-3)


def test_memory_of_an_earlier_sample_does_not_reach_the_next_in_its_slot() -> None:
    pipeline, plan = class_pipeline(), schedule_plans()[1]
    prepared, sampler = Plans(pipeline), Sampler(pipeline, 1)
    first = begin(sampler, prepared, plan, 0, slot=0)
    sampler.latents[0] = torch.nan
    sampler.step([first])
    assert not first.finite
    sampler.end([first])
    second = begin(sampler, prepared, plan, 1, slot=0)
    while not second.done:
        sampler.step([second])
    assert torch.equal(sampler.pixels(sampler.latents)[0], alone(pipeline, plan, 101, 1)[0])

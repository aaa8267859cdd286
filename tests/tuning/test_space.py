"""The space of a model, and what its trials choose."""

from dataclasses import replace

import optuna
import pytest

from adadiff.sampling import UNCONDITIONAL, Guidance, InternalGuidance, SamplingPlan
from adadiff.tuning import TunablePipeline
from adadiff.tuning.space import DETERMINISTIC


@pytest.fixture
def space(tunable):
    return tunable.space()


def chosen(space, n=200, seed=0):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return [space.suggest(study.ask()) for _ in range(n)]


def test_its_ranges_follow_from_the_model(space, pipeline, default):
    assert space.steps == (4, 6)
    assert space.scale == (1.0, 8.0)
    assert space.internal_layers == 4
    assert set(DETERMINISTIC) <= set(space.schedulers)
    unconditional = TunablePipeline(pipeline, SamplingPlan(20), UNCONDITIONAL).space()
    assert unconditional.scale is None
    assert unconditional.steps == (4, 30)
    assert all(each.guidance.scale == 1 for each in chosen(unconditional))


def test_every_choice_is_a_plan_whose_guidance_guides(space):
    for choices in chosen(space):
        plan, guidance = choices.with_all_layers, choices.guidance
        guided = [guidance.applies(step, plan.steps) for step in range(plan.steps)]
        assert any(guided) == (guidance.scale > 1)
        if guidance.internal is not None:
            start, end = guidance.internal.interval
            assert any(start <= step / plan.steps < end for step in range(plan.steps))
            assert 1 <= guidance.internal.layer <= 4


def test_the_full_models_space_differs_in_steps_and_depth_alone(space):
    full = space.with_all_layers(4)
    assert {(each.steps, each.depth) for each in chosen(full)} == {(4, 1.0)}
    assert (full.scale, full.schedulers, full.spacings) == (space.scale, space.schedulers, space.spacings)


def started(space, *args):
    """Return the choices of a search's first trials."""
    return [space.suggest(optuna.trial.FixedTrial({**filled(space), **start})) for start in space.starts(*args)]


def test_the_first_start_is_the_default_and_the_second_spends_the_budget_on_steps(
    classes_pipeline, default, conditions
):
    default = replace(default, steps=20, guidance=Guidance(6.0))
    space = TunablePipeline(classes_pipeline, default, conditions).space()
    plans = [each.with_all_layers for each in started(space, default, 0.5)]
    assert plans[:2] == [default, replace(default, steps=10)]
    guidances = [plan.guidance for plan in plans[2:]]
    assert [(each.scale, each.interval, each.internal is None) for each in guidances] == [
        (4.5, (0.0, 1.0), True),
        (3.0, (0.0, 1.0), True),
        (6.0, (0.25, 0.75), True),
        (6.0, (0.25, 0.75), False),
    ]
    assert {plan.steps for plan in plans[2:]} == {20}


def test_a_search_begins_with_the_full_models_that_are_known_with_less_depth_and_with_fewer_steps(space, default):
    internal = InternalGuidance(2, 0.75, (0.1, 0.9))
    guidance = Guidance(3.5, (0.05, 0.85), internal=internal)
    best = replace(default, steps=5, scheduler="unipc", spacing="trailing", guidance=guidance)
    other = replace(best, guidance=Guidance(2.0))
    plans = started(space, default, 0.9, [best, other])
    lower = replace(guidance, scale=3.0)
    assert [plan.with_all_layers for plan in plans[:7]] == [
        best,
        replace(best, steps=6),
        replace(best, steps=6, guidance=lower),
        replace(best, steps=4),
        other,
        replace(other, steps=6),
        replace(other, steps=4),
    ]
    assert {plan.depth for plan in plans[:3]} == {1.0}  # the budget cuts it
    assert [plan.depth for plan in started(space, default, None, [best])[:4]] == [0.5, 0.5, 0.5, 1.0]


def filled(space):
    """Values of all parameters."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    trial = study.ask()
    space.suggest(trial)
    return trial.params

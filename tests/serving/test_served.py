"""What requests to each kind of model may ask, and what the engine runs for them."""

from __future__ import annotations

import pytest

from adadiff import AdaDiffPipeline, CorrectedScheduleExit, NeverExit
from adadiff.policies.stored import save_policies
from adadiff.sampling import Guidance, SamplingPlan
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.serving.plans import Plans
from adadiff.serving.protocol import GenerationRequest
from adadiff.serving.served import ServedModel
from adadiff.utils.errors import InputError
from tests.conftest import make_model

POLICY = CorrectedScheduleExit((5, 1, 5, 1))
LARGER = CorrectedScheduleExit((5, 5, 5, 5, 5, 5, 1, 1))


def refusal(model: ServedModel, **settings: object) -> str:
    """Why a request is refused."""
    with pytest.raises(InputError) as refused:
        model.planned(GenerationRequest(**settings))
    return str(refused.value)


@pytest.fixture
def calibrated(class_pipeline: AdaDiffPipeline, tmp_path) -> ServedModel:
    """A model of 10 guided steps by default, whose folder holds its own plan, of 4 steps, and another, of 8."""
    class_pipeline.save_pretrained(tmp_path)
    SamplingDefaults("ddpm", 10, guidance_scale=2.0).save(tmp_path)
    plans = [SamplingPlan(4, POLICY, Guidance(3.0), spacing="trailing"), SamplingPlan(8, LARGER, Guidance(3.0))]
    stored = [
        class_pipeline.with_plan(plan).own_settings.stored.calibrated_for.stored(plan.policy, {"compute": 0.55}, {})
        for plan in plans
    ]
    save_policies(stored, tmp_path)
    return ServedModel("calibrated", AdaDiffPipeline.from_pretrained(tmp_path))


def test_plans_by_name_and_by_budget(calibrated):
    own, larger = 0.24, 0.64  # (5 + 1 + 5 + 1) and 6 * 5 + 2 layers of 50, with embeddings and heads
    for plan, name in (("own", "own"), (own, own), (0.6, own), (larger, larger), (0.99, larger), (1.0, 1.0)):
        planned = calibrated.planned(GenerationRequest(prompt="cat", plan=plan))
        assert planned.plan == name
        wanted = {own: POLICY, "own": POLICY, larger: LARGER, 1.0: NeverExit()}[name]
        assert planned.images.plan.policy == wanted
    assert "plan: no plan of the model takes at most 0.2 of the full model's compute: the least on offer is 0.24" in (
        refusal(calibrated, prompt="cat", plan=0.2)
    )
    described = calibrated.describe()
    assert [(entry.plan, entry.steps, entry.guidance_scale, entry.guidance) for entry in described.plans] == [
        ("own", 4, 3.0, "scale 3"),
        (own, 4, 3.0, "scale 3"),
        (larger, 8, 3.0, "scale 3"),
        ("full", 10, 2.0, "scale 2"),
    ]
    assert [entry.compute_fraction for entry in described.plans] == [
        pytest.approx(compute, abs=0.005) for compute in (own, own, larger, 1.0)
    ]
    assert (described.steps, described.guidance_scale) == (10, 2.0)


def test_the_full_model_takes_its_default_steps_unless_asked_otherwise(calibrated):
    full = calibrated.planned(GenerationRequest(prompt="cat", plan="full")).images.plan
    assert (full.steps, full.policy, full.guidance) == (10, NeverExit(), Guidance(2.0))
    fewer = calibrated.planned(GenerationRequest(prompt="cat", plan="full", num_inference_steps=5)).images.plan
    assert (fewer.steps, fewer.policy, fewer.guidance) == (5, NeverExit(), Guidance(2.0))


def test_the_engine_samples_each_plan_at_its_own_times(calibrated, class_pipeline):
    engine = Plans(class_pipeline.with_plan(calibrated.planned(GenerationRequest(prompt="cat")).images.plan))
    for plan, spacing in (("own", "trailing"), (0.99, "leading"), ("full", "leading")):
        prepared = engine.prepare(calibrated.planned(GenerationRequest(prompt="cat", plan=plan)).images.plan)
        assert prepared.scheduler.config.timestep_spacing == spacing


def test_other_settings_than_the_plan_was_made_for_give_a_warning(calibrated):
    assert calibrated.planned(GenerationRequest(prompt="cat")).warning is None
    stretched = calibrated.planned(GenerationRequest(prompt="cat", num_inference_steps=8))
    assert stretched.images.plan.policy == POLICY.stretched(8)
    assert "steps 8 in place of 4" in stretched.warning


def test_a_model_of_texts(text_pipeline):
    model = ServedModel("emoji", text_pipeline)
    images = model.planned(GenerationRequest(prompt="red apple", negative_prompt="blue", guidance_scale=2.0)).images
    assert (images.prompt, images.negative_prompt, images.class_label) == ("red apple", "blue", None)
    assert images.plan.guidance.scale == 2
    assert "prompt: the model takes a prompt" in refusal(model)
    assert "class_label: the model takes no class" in refusal(model, prompt="a", class_label=1)
    assert model.describe().takes == "prompt"


def test_a_model_of_neither(pipeline):
    model = ServedModel("digits", pipeline)
    images = model.planned(GenerationRequest(prompt="", n=3, seed=2**63 - 1)).images
    assert (images.prompt, images.class_label) == (None, None)
    assert images.seeds == (2**63 - 1, 2**63, 2**63 + 1)
    assert "prompt: the model takes no prompt" in refusal(model, prompt="a digit")
    assert "no unconditional prediction to guide away from" in refusal(model, guidance_scale=2.0)
    assert model.describe().takes == "nothing"
    assert not model.describe().can_guide


def test_classes_without_names_and_without_a_null_class(pipeline):
    bare = AdaDiffPipeline(make_model(num_classes=4), pipeline.scheduler)
    model = ServedModel("bare", bare)
    assert model.planned(GenerationRequest(class_label=3)).images.class_label == 3
    assert "no names" in refusal(model, class_label="3")
    assert "no unconditional prediction" in refusal(model, class_label=1, guidance_scale=2.0)
    assert model.describe().classes is None


def test_models_that_cannot_be_shown_are_refused(pipeline, text_pipeline):
    latents = AdaDiffPipeline(make_model(in_channels=4), pipeline.scheduler)
    with pytest.raises(InputError, match="latents of 4 channels, and its folder holds no autoencoder"):
        ServedModel("latents", latents)
    with pytest.raises(InputError, match="holds no text encoder"):
        ServedModel("mute", text_pipeline.with_parts(text_encoder=None))


def test_the_schedulers_of_requests_and_engine_are_two(class_pipeline):
    model = ServedModel("animals", class_pipeline)
    assert model._pipeline.scheduler is not class_pipeline.scheduler
    assert model._pipeline.transformer is class_pipeline.transformer

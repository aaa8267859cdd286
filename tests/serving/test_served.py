"""What requests to each kind of model may ask, and what the engine runs for them."""

from __future__ import annotations

import pytest

from adadiff import AdaDiffPipeline, CorrectedScheduleExit, NeverExit
from adadiff.policies.stored import StoredPolicy
from adadiff.sampling import Guidance, SamplingPlan
from adadiff.serving.protocol import GenerationRequest
from adadiff.serving.served import ServedModel
from adadiff.utils.errors import InputError
from tests.conftest import make_model

POLICY = CorrectedScheduleExit((5, 1, 5, 1))


def refusal(model: ServedModel, **settings: object) -> str:
    """Why a request is refused."""
    with pytest.raises(InputError) as refused:
        model.planned(GenerationRequest(**settings))
    return str(refused.value)


@pytest.fixture
def calibrated(class_pipeline: AdaDiffPipeline, tmp_path) -> ServedModel:
    """A model whose folder holds a plan for 55% of the compute."""
    class_pipeline.save_pretrained(tmp_path)
    context = class_pipeline.with_plan(SamplingPlan(4, POLICY, Guidance(3.0))).own_settings.stored.calibrated_for
    StoredPolicy(POLICY, context, {"compute": 0.55}, {"compute": 0.547}).save(tmp_path)
    return ServedModel("calibrated", AdaDiffPipeline.from_pretrained(tmp_path))


def test_plans_by_name_and_by_budget(calibrated):
    for plan in ("own", 0.55, 0.553):
        assert calibrated.planned(GenerationRequest(prompt="cat", plan=plan)).images.plan.policy == POLICY
    full = calibrated.planned(GenerationRequest(prompt="cat", plan="full")).images.plan
    assert full.policy == NeverExit()
    assert (full.steps, full.guidance) == (4, Guidance(3.0))
    assert "no plan for a compute budget of 0.3; choose 0.55" in refusal(calibrated, prompt="cat", plan=0.3)
    assert [(entry.plan, entry.compute_fraction) for entry in calibrated.describe().plans] == [
        ("own", 0.547), (0.55, 0.547), ("full", 1.0),
    ]  # fmt: skip


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

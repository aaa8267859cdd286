"""The pipeline's arguments, as diffusers has them."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.callbacks import PipelineCallback

from adadiff import AdaDiffPipeline, InputError, NeverExit, ScheduleExit
from adadiff.sampling.schedulers import scheduler_like
from adadiff.training.config import DiffusionConfig
from adadiff.utils.seeding import generator_for
from tests.conftest import make_model

OURS = {
    "class_labels",
    "batch_size",
    "guidance",
    "guidance_interval",
    "tied_exits",
    "tau",
    "policy",
    "return_uncertainties",
}


def parameters(kind):
    return {name: each for name, each in inspect.signature(kind.__call__).parameters.items() if name != "self"}


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline", "PixArtAlphaPipeline"])
def test_the_arguments_are_those_of_diffusers(name):
    ours, theirs = parameters(AdaDiffPipeline), parameters(getattr(diffusers, name))
    assert next(iter(ours)) == next(iter(theirs)) == "prompt"
    shared = [each for each in ours if each in theirs]
    moved = {"negative_prompt"}  # stands in another place in each of theirs
    assert [each for each in shared if each not in moved] == [each for each in theirs if each in {*shared} - moved]
    for each in ("prompt", "num_images_per_prompt", "generator", "latents", "output_type", "return_dict"):
        assert ours[each].default == theirs[each].default
    if "callback_on_step_end" in theirs:
        assert {*ours} - {*theirs} == OURS  # PixArt-alpha still has the callback of older versions
        each = "callback_on_step_end_tensor_inputs"
        assert list(ours[each].default) == theirs[each].default
    assert all(each.kind == each.KEYWORD_ONLY for each in list(ours.values())[1:])


def numbers(n):
    return [generator_for(0, k) for k in range(n)]


def sample(pipe, *prompt, **arguments):
    return pipe(*prompt, **{"num_inference_steps": 3, "output_type": "pt", **arguments})


def test_a_prompt_comes_first(text_pipeline):
    assert text_pipeline("red apple", num_inference_steps=1).images[0].size == (8, 8)
    with pytest.raises(InputError, match="2 is not a prompt"):
        text_pipeline(2)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(
    ("given", "repeated"),
    [
        ({"prompt": ["cat", "dog"]}, {"prompt": ["cat", "cat", "dog", "dog"]}),
        ({"class_labels": ["cat", "owl"]}, {"class_labels": ["cat", "cat", "owl", "owl"]}),
        (
            {"prompt": ["cat", "dog"], "negative_prompt": ["snow", "owl"]},
            {"prompt": ["cat", "cat", "dog", "dog"], "negative_prompt": ["snow", "snow", "owl", "owl"]},
        ),
    ],
)
def test_images_of_a_prompt_stand_together(text_pipeline, class_pipeline, given, repeated, scale):
    pipe = text_pipeline if "prompt" in given else class_pipeline
    wanted = sample(pipe, **repeated, guidance_scale=scale, generator=numbers(4)).images
    found = sample(pipe, **given, guidance_scale=scale, num_images_per_prompt=2, generator=numbers(4)).images
    assert torch.equal(found, wanted)
    assert not torch.allclose(wanted[0], wanted[1], atol=1e-2)


def test_images_without_conditions_are_repeated_too(pipeline):
    wanted = sample(pipeline, batch_size=6, generator=numbers(6)).images
    assert torch.equal(sample(pipeline, batch_size=3, num_images_per_prompt=2, generator=numbers(6)).images, wanted)
    with pytest.raises(InputError, match="3 generators for 6 images"):
        sample(pipeline, batch_size=3, num_images_per_prompt=2, generator=numbers(3))


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_latents_take_the_place_of_the_generators_noise(pipeline, scheduler):
    pipeline.scheduler = scheduler_like(scheduler, pipeline.scheduler)
    wanted = sample(pipeline, batch_size=2, generator=torch.Generator().manual_seed(3)).images
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(sample(pipeline, batch_size=2, latents=noise).images, wanted)
    assert torch.equal(sample(pipeline, batch_size=2, latents=noise.double()).images, wanted)
    assert not torch.equal(sample(pipeline, batch_size=2, latents=noise.flip(0)).images, wanted)


def latent_pipeline():
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4, **blocks)
    pipe = AdaDiffPipeline(make_model(in_channels=4), DiffusionConfig().build(in_latents=True), vae=vae)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_output_is_of_the_asked_type():
    pipe = latent_pipeline()
    outputs = {kind: sample(pipe, batch_size=2, generator=numbers(2), output_type=kind).images for kind in ALL_TYPES}
    latents, images = outputs["latent"], outputs["pt"]
    assert latents.shape == (2, 4, 8, 8)
    assert latents.abs().max() > 1
    assert images.shape == (2, 3, 8, 8)
    assert torch.equal((pipe.decode(latents) / 2 + 0.5).clamp(0, 1), images)
    assert np.array_equal(outputs["np"], images.permute(0, 2, 3, 1).numpy())
    assert [np.array(image).tolist() for image in outputs["pil"]] == (255 * outputs["np"]).round().astype(int).tolist()


ALL_TYPES = ("pil", "np", "pt", "latent")


def test_a_tuple_holds_the_same(pipeline):
    output = sample(pipeline, generator=numbers(1))
    images, trace = sample(pipeline, generator=numbers(1), return_dict=False)
    assert torch.equal(images, output.images)
    assert torch.equal(trace.exit_layers, output.trace.exit_layers)


# ---------------------------------------------------------------------------------------------------------------------
# Callbacks


def test_a_callback_sees_every_step(pipeline):
    seen = []

    def note(pipe, step, timestep, tensors):
        assert pipe is pipeline
        seen.append((step, timestep.item(), tensors["latents"]))
        return {}

    output = sample(pipeline, generator=numbers(1), callback_on_step_end=note, output_type="latent")
    assert [step for step, *_ in seen] == [0, 1, 2]
    assert tuple(timestep for _, timestep, _ in seen) == output.trace.timesteps
    assert torch.equal(seen[-1][2], output.images)
    assert torch.equal(output.images, sample(pipeline, generator=numbers(1), output_type="latent").images)

    def see_nothing(pipe, step, timestep, tensors):
        assert tensors == {}
        return tensors

    sample(pipeline, callback_on_step_end=see_nothing, callback_on_step_end_tensor_inputs=[])


def test_latents_that_a_callback_returns_are_gone_on_with(pipeline):
    states = {}

    def halved(pipe, step, timestep, tensors):
        states[step] = tensors["latents"]
        return {"latents": tensors["latents"] / 2} if step == 2 else tensors

    output = sample(pipeline, generator=numbers(1), callback_on_step_end=halved, output_type="latent")
    plain = sample(pipeline, generator=numbers(1), output_type="latent")
    assert torch.equal(output.images, plain.images / 2)


def test_a_callback_class_of_diffusers_names_its_tensors(pipeline):
    class Halving(PipelineCallback):
        tensor_inputs = ("latents",)

        def callback_fn(self, pipe, step, timestep, tensors):
            return {"latents": tensors["latents"] / 2}

    changed, plain = (
        sample(pipeline, num_inference_steps=1, generator=numbers(1), output_type="latent", **call).images
        for call in ({"callback_on_step_end": Halving(), "callback_on_step_end_tensor_inputs": ["other"]}, {})
    )
    assert torch.equal(changed, plain / 2)


def test_an_interrupted_sampling_skips_its_remaining_steps(class_pipeline):
    def stop(pipe, step, timestep, tensors):
        pipe.interrupt = step == 1
        return {}

    arguments = {"class_labels": ["cat", "dog"], "policy": ScheduleExit((5, 3, 1, 5, 1)), "num_inference_steps": 5}
    guided = {"guidance_scale": 2.0, "guidance_interval": (0.2, 1.0), "generator": numbers(2)}
    output = sample(class_pipeline, **arguments, **guided, callback_on_step_end=stop, output_type="latent")
    assert output.trace.exit_layers[:, 0].tolist() == [5, 3]
    assert output.trace.unconditional_exit_layers[:, 0].tolist() == [0, 3]
    assert len(output.trace.timesteps) == 2

    states = []

    def keep(pipe, step, timestep, tensors):
        states.append(tensors["latents"])
        return tensors

    guided["generator"] = numbers(2)
    whole = sample(class_pipeline, **arguments, **guided, callback_on_step_end=keep)
    assert torch.equal(states[1], output.images)
    assert len(whole.trace.exit_layers) == 5  # the interruption ended with its call
    assert not class_pipeline.interrupt


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": torch.zeros(1, 1, 8, 9)}, r"shape \(1, 1, 8, 9\): it must be .*, \(1, 1, 8, 8\)"),
        (
            {"latents": torch.zeros(1, 1, 8, 8), "num_images_per_prompt": 2},
            r"channels, height, width\), \(2, 1, 8, 8\)",
        ),
        ({"latents": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}, "of type torch.int64: give a floating-point tensor"),
        ({"latents": np.zeros((1, 1, 8, 8))}, "of type ndarray: give a floating-point tensor"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0: it must be at least 1"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt is 1.5: it must be a whole number"),
        ({"output_type": "jpeg"}, 'the output type is \'jpeg\': it must be "pil", "np", "pt" or "latent"'),
        ({"output_type": None}, "the output type is None"),
        ({"callback_on_step_end": 5}, "callback_on_step_end is 5: give a function"),
        ({"callback_on_step_end_tensor_inputs": ["sigmas"]}, "names 'sigmas': choose from latents"),
        ({"callback_on_step_end": lambda *call: None}, "returned None: it must return a dict"),
        ({"callback_on_step_end": lambda *call: call[3]["latents"]}, "returned tensor.*: it must return a dict"),
        ({"callback_on_step_end": lambda *call: {"latents": 0}}, "latents that the callback returned are of type int"),
        ({"callback_on_step_end": lambda *call: {"latents": torch.zeros(2)}}, r"callback returned are of shape \(2,\)"),
    ],
)
def test_bad_arguments_are_one_line(pipeline, arguments, message):
    with pytest.raises(InputError, match=message) as raised:
        sample(pipeline, **{"callback_on_step_end": lambda *call: {}, **arguments})
    assert "\n" not in str(raised.value)


def test_a_policy_goes_with_every_argument(pipeline):
    output = sample(pipeline, batch_size=2, tau=0.5, return_uncertainties=True, latents=torch.randn(2, 1, 8, 8))
    assert output.trace.uncertainties.isfinite().any()
    assert sample(pipeline, policy=NeverExit()).trace.layer_fraction == 1

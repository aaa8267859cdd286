"""The pipeline, with every scheduler."""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTPipeline

from adadiff import AdaDiffPipeline, FixedExit, InputError, PatienceExit, ScheduleExit, ThresholdExit, load_policy
from adadiff.sampling.finite import NonFiniteImagesError
from adadiff.sampling.schedulers import SCHEDULERS, scheduler_like
from adadiff.training.config import DiffusionConfig
from adadiff.utils.files import PRETRAINED
from adadiff.utils.seeding import generator_for
from tests.conftest import make_model


def generators(numbers, seed=0):
    return [generator_for(seed, k) for k in numbers]


def test_ddim_in_full_is_the_plain_loop(pipeline):
    """Against DDIM (Song et al. 2021, equation 12, eta = 0) written out."""
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    images = pipeline(batch_size=2, num_inference_steps=4, generator=generators(range(2)), output_type="pt").images
    abar = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000), 0)
    x = torch.cat([torch.randn(1, 1, 8, 8, generator=generator_for(0, k)) for k in range(2)])
    with torch.no_grad():
        for t in (750, 500, 250, 0):
            eps = pipeline.transformer.backbone(x, torch.full((2,), t))
            x0 = (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()
            before = abar[t - 250] if t else torch.tensor(1.0)
            x = before.sqrt() * x0 + (1 - before).sqrt() * eps
    torch.testing.assert_close(images, (x / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_with_any_scheduler_image_k_depends_on_its_generator_alone(pipeline, name):
    pipeline.scheduler = scheduler_like(name, pipeline.scheduler)
    settings = {"num_inference_steps": 6, "policy": PatienceExit(0.6, 2), "output_type": "pt"}
    together = pipeline(batch_size=5, generator=generators(range(5)), **settings)
    assert not torch.allclose(together.images[0], together.images[1])
    for numbers in ([3], [4, 1]):
        some = pipeline(batch_size=len(numbers), generator=generators(numbers), **settings)
        torch.testing.assert_close(some.images, together.images[numbers], rtol=1e-4, atol=1e-4)
        assert torch.equal(some.trace.exit_layers, together.trace.exit_layers[:, numbers])
    assert together.trace.exit_layers.shape == (len(pipeline.scheduler.timesteps), 5)


def test_the_trace_is_what_the_model_did(pipeline):
    tau = tuple(np.linspace(0.3, 0.7, 5))
    output = pipeline(batch_size=3, num_inference_steps=5, tau=tau, return_uncertainties=True)
    trace = output.trace
    for step in range(5):
        for k in range(3):
            left, seen = trace.exit_layers[step, k], trace.uncertainties[step, k]
            assert (seen[: left - 1] >= tau[step]).all()
            assert left == 5 or seen[left - 1] < tau[step]
            assert seen[left:].isnan().all()
    assert trace.timesteps == tuple(pipeline.scheduler.timesteps.tolist())
    fixed = pipeline(batch_size=3, num_inference_steps=2, policy=FixedExit(2)).trace
    assert fixed.layer_fraction == pytest.approx(2 / 5)
    flops = pipeline.transformer.part_flops
    wanted = (flops.embed + flops.layers[:2].sum() + flops.heads[1]) / flops.full
    assert fixed.compute_fraction == pytest.approx(float(wanted))


def test_the_same_generator_gives_the_same_images(pipeline):
    images = [
        pipeline(batch_size=2, generator=torch.Generator().manual_seed(5), output_type="pt").images for _ in range(2)
    ]
    assert torch.equal(*images)


def test_pil_images_are_the_tensors(pipeline):
    tensor = pipeline(batch_size=2, num_inference_steps=2, generator=generators(range(2)), output_type="pt").images
    pil = pipeline(batch_size=2, num_inference_steps=2, generator=generators(range(2))).images
    assert pil[1].mode == "L"
    assert np.array_equal(np.array(pil[1]), (tensor[1, 0] * 255).round().byte().numpy())


def test_saved_and_loaded_it_samples_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = AdaDiffPipeline.from_pretrained(tmp_path)
    images = [
        p(batch_size=2, tau=0.5, generator=generators(range(2)), output_type="pt").images for p in (pipeline, loaded)
    ]
    assert torch.equal(*images)
    assert isinstance(loaded.scheduler, DDPMScheduler)


def test_stock_pipelines_hold_the_model():
    scheduler = DDIMScheduler()
    images = DDPMPipeline(make_model(), scheduler)(batch_size=2, num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 8, 8, 1)

    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8)
    pipe = DiTPipeline(make_model(in_channels=4, num_classes=1001), vae, scheduler)
    assert pipe([3, 4], num_inference_steps=2, guidance_scale=1.0, output_type="np").images.shape == (2, 8, 8, 3)


def test_classes_reach_the_model():
    pipe = AdaDiffPipeline(make_model(num_classes=3), DiffusionConfig().build())
    pipe.set_progress_bar_config(disable=True)
    images = [
        pipe(
            batch_size=2, class_labels=labels, num_inference_steps=2, generator=generators(range(2)), output_type="pt"
        ).images
        for labels in ([0, 1], [0, 2])
    ]
    assert torch.allclose(images[0][0], images[1][0], atol=1e-5)
    assert not torch.allclose(images[0][1], images[1][1], atol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"num_inference_steps": 0}, "between 1 and 1000"),
        ({"num_inference_steps": 1001}, "between 1 and 1000"),
        ({"tau": 1.5}, "between 0 and 1"),
        ({"tau": [0.1] * 3}, "one per step, 50"),
        ({"tau": 0.5, "policy": ThresholdExit(0.5)}, "either tau or a policy"),
        ({"class_labels": [1]}, "takes no class labels"),
        ({"output_type": "numpy"}, 'output type is \'numpy\': it must be "pil", "np", "pt" or "latent"'),
        ({"generator": [torch.Generator()] * 3}, "3 generators for 1"),
    ],
)
def test_bad_arguments_are_named(pipeline, arguments, message):
    with pytest.raises(InputError, match=message):
        pipeline(**arguments)


@pytest.mark.parametrize(("labels", "message"), [([3], "0 to 2"), ([-1], "0 to 2"), (None, "needs"), ([0, 1], "needs")])
def test_bad_labels_are_named(labels, message):
    pipe = AdaDiffPipeline(make_model(num_classes=3), DiffusionConfig().build())
    with pytest.raises(InputError, match=message):
        pipe(batch_size=1, class_labels=labels)


def same_images(pipe, *calls):
    images = [
        pipe(**{"num_inference_steps": 2, "generator": generators(range(2)), "output_type": "pt", **call}).images
        for call in calls
    ]
    return all(torch.equal(images[0], other) for other in images[1:])


def test_labels_come_as_diffusers_users_have_them(class_pipeline):
    ways = [[1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]), [np.int64(1), np.int32(2)], ["dog", "owl"]]
    ways += [np.array(["dog", "owl"]), range(1, 3), torch.tensor([1, 2], dtype=torch.int32), list(torch.tensor([1, 2]))]
    assert same_images(class_pipeline, *({"class_labels": labels} for labels in ways))
    for one in (1, "dog", np.int64(1), torch.tensor(1)):
        for_two = {"class_labels": one, "batch_size": 2}
        assert same_images(class_pipeline, for_two, {"class_labels": [1, 1]})
    assert not same_images(class_pipeline, {"class_labels": [1, 2]}, {"class_labels": [1, 1]})
    assert class_pipeline(class_labels="dog", num_inference_steps=1, output_type="pt").images.shape[0] == 1


def test_negative_prompts_come_as_diffusers_users_have_them(text_pipeline):
    guided = {"prompt": ["cat", "dog"], "guidance_scale": 2.0}
    assert same_images(text_pipeline, guided, *({**guided, "negative_prompt": none} for none in (None, "", ["", ""])))
    own = {**guided, "negative_prompt": ["snow", "owl"]}
    snow = {**guided, "negative_prompt": "snow"}
    assert not same_images(text_pipeline, guided, snow)
    assert not same_images(text_pipeline, own, snow)
    assert same_images(text_pipeline, snow, {**guided, "negative_prompt": ("snow", "snow")})
    one = {"prompt": "cat", "batch_size": 2, "guidance_scale": 2.0}
    assert same_images(text_pipeline, one, {"prompt": np.array(["cat", "cat"]), "guidance_scale": 2.0})


def test_numbers_come_from_numpy_and_torch(class_pipeline):
    plain = {"class_labels": [1, 2], "tau": 0.5, "guidance_scale": 2.0}
    numpy = {"tau": np.float32(0.5), "guidance_scale": np.float64(2), "num_inference_steps": np.int64(2)}
    tensors = {"tau": torch.tensor([0.5, 0.5]), "guidance_scale": torch.tensor(2.0), "batch_size": np.int32(2)}
    arrays = {"tau": np.array([0.5, 0.5]), "guidance_interval": np.array([0.0, 1.0])}
    assert same_images(class_pipeline, plain, *({**plain, **changed} for changed in (numpy, tensors, arrays)))
    json.dumps([ThresholdExit(np.array([0.5])).describe(), ScheduleExit(np.array([3, 5])).describe()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": [True]}, "True is not a class"),
        ({"class_labels": True}, "True is not a class"),
        ({"class_labels": 1.0}, "1.0 is not a class"),
        ({"class_labels": np.array([1.0])}, "1.0 is not a class"),
        ({"class_labels": torch.tensor([[1]])}, "is not a class"),
        ({"class_labels": []}, "needs a class label for each of the 1 images"),
        ({"class_labels": [0, 1], "batch_size": 3}, "for each of the 3 images"),
        ({"class_labels": 3}, "is the null class"),
        ({"class_labels": "1"}, "give an int, or --class-index 1"),
        ({"class_labels": 0, "batch_size": 2.0}, "the batch size is 2.0: it must be a whole number"),
        ({"class_labels": 0, "batch_size": True}, "the batch size is True"),
        ({"class_labels": 0, "num_inference_steps": 10.0}, "the number of steps is 10.0"),
        ({"class_labels": 0, "tau": True}, "tau is True"),
        ({"class_labels": 0, "tau": "0.3"}, "tau is '0.3'"),
        ({"class_labels": 0, "tau": float("nan")}, "tau is nan"),
        ({"class_labels": 0, "guidance_scale": float("nan")}, "the guidance scale is nan"),
        ({"class_labels": 0, "guidance_scale": float("inf")}, "the guidance scale is inf"),
        ({"class_labels": 0, "guidance_interval": (0, float("nan"))}, "two fractions of the steps"),
        ({"class_labels": 0, "guidance_interval": 0.5}, "two fractions of the steps"),
        ({"class_labels": 0, "tau": np.zeros((50, 9))}, "it must be a number$"),
        ({"class_labels": 0, "generator": 5}, "the generator is 5: give a torch.Generator"),
        ({"class_labels": 0, "policy": 0.5}, "give an ExitPolicy"),
        ({"class_labels": 0, "guidance_scale": 2, "negative_prompt": "snow"}, "takes no prompts"),
        ({"class_labels": 0, "guidance_scale": 2, "negative_prompt": ["", ""]}, "2 negative prompts for 1 images"),
        ({"class_labels": 0, "guidance_scale": 2, "negative_prompt": 5}, "5 is not a prompt"),
    ],
)
def test_arguments_of_other_types_are_refused_in_one_line(class_pipeline, arguments, message):
    with pytest.raises(InputError, match=message) as raised:
        class_pipeline(**arguments)
    assert "\n" not in str(raised.value)


def diffusers_schedulers():
    kinds = {name: getattr(diffusers, name, None) for name in dir(diffusers) if name.endswith("Scheduler")}
    return sorted(name for name, kind in kinds.items() if isinstance(kind, type) and "Flax" not in name)


@pytest.mark.parametrize("name", diffusers_schedulers())
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.filterwarnings("ignore")
def test_any_scheduler_of_diffusers_samples_or_is_refused(pipeline, name, prediction_type):
    trained = DiffusionConfig(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type).build()
    try:
        scheduler = getattr(diffusers, name).from_config(trained.config)
    except (TypeError, ValueError, ImportError):
        pytest.skip("it is not made from such a configuration")
    pipe = pipeline.with_parts(scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    refusal = None
    try:
        output = pipe(batch_size=2, num_inference_steps=5, generator=generators(range(2)), tau=0.5, output_type="pt")
    except InputError as error:
        refusal = error
    if refusal is not None:
        assert name not in {kind.__name__ for kind in SCHEDULERS.values()} | EVALUATED_MORE_OFTEN
        assert name in str(refusal) or isinstance(refusal, NonFiniteImagesError)
        assert "\n" not in str(refusal)
        return
    assert output.images.isfinite().all()
    assert not torch.equal(*output.images)
    assert output.trace.exit_layers.shape == (len(output.trace.timesteps), 2)


EVALUATED_MORE_OFTEN = {"HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler"}


@pytest.mark.parametrize("name", sorted(EVALUATED_MORE_OFTEN))
def test_policies_and_the_guidance_interval_go_by_evaluations(class_pipeline, name):
    pipe = class_pipeline.with_parts(scheduler=getattr(diffusers, name).from_config(class_pipeline.scheduler.config))
    pipe.set_progress_bar_config(disable=True)
    evaluations = {"PNDMScheduler": 17}.get(name, 15)
    labelled = {"class_labels": [0], "num_inference_steps": 8}
    with pytest.raises(
        InputError, match=rf"one per step, {evaluations} \({name} evaluates the model {evaluations} times"
    ):
        pipe(**labelled, policy=ScheduleExit((5,) * 8))
    layers = tuple(k % 5 + 1 for k in range(evaluations))
    trace = pipe(**labelled, policy=ScheduleExit(layers), guidance_scale=2.0, guidance_interval=(0.5, 1.0)).trace
    assert trace.exit_layers[:, 0].tolist() == list(layers)
    guided = trace.unconditional_exit_layers[:, 0] > 0
    assert guided.tolist() == [k / evaluations >= 0.5 for k in range(evaluations)]


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_at_as_many_steps_as_times_every_time_comes_once(name, spacing):
    model = make_model(depth=1, width=8)
    trained = DiffusionConfig(num_train_timesteps=40).build()
    scheduler = SCHEDULERS[name].from_config(trained.config, timestep_spacing=spacing)
    pipe = AdaDiffPipeline(model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(num_inference_steps=40, output_type="pt")
    assert output.images.isfinite().all()
    assert [round(time) for time in output.trace.timesteps] == list(range(39, -1, -1))


def test_flow_sigmas_and_flow_matching_are_refused_by_name(pipeline):
    flows = diffusers.UniPCMultistepScheduler.from_config(pipeline.scheduler.config, use_flow_sigmas=True)
    matching = diffusers.FlowMatchEulerDiscreteScheduler()
    for scheduler, named in ((flows, "UniPCMultistepScheduler with flow sigmas"), (matching, "FlowMatchEuler")):
        with pytest.raises(InputError, match=f"{named}.* variance-preserving .* DDIMScheduler"):
            pipeline.with_parts(scheduler=scheduler)()


@pytest.mark.parametrize("output_type", ["pil", "pt"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_images_that_are_not_numbers_are_an_error_that_knows_which(pipeline, monkeypatch, output_type, value):
    decode = type(pipeline).decode

    def broken(self, sample):
        images = decode(self, sample)
        images[[0, 2], 0, 3, 3] = value
        return images

    monkeypatch.setattr(type(pipeline), "decode", broken)
    with pytest.raises(NonFiniteImagesError, match=r"2 of 3 images are NaN or infinite \(at positions 0, 2\)") as told:
        pipeline(batch_size=3, num_inference_steps=2, output_type=output_type)
    assert told.value.positions == (0, 2)
    assert isinstance(told.value, InputError)


def test_packaged_models_load_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert AdaDiffPipeline.from_pretrained("digits").transformer.depth == 17
    assert load_policy("digits") == load_policy(PRETRAINED / "digits")
    with pytest.raises(InputError, match="in the package: did you mean digits"):
        AdaDiffPipeline.from_pretrained("digit")


def test_an_unknown_scheduler_is_named(pipeline):
    with pytest.raises(InputError, match="did you mean ddim"):
        scheduler_like("dimm", pipeline.scheduler)


def test_latents_without_an_autoencoder_are_no_images():
    pipe = AdaDiffPipeline(make_model(in_channels=4), DiffusionConfig().build(in_latents=True))
    with pytest.raises(InputError, match="no autoencoder to decode"):
        pipe(num_inference_steps=1)
    assert pipe(num_inference_steps=1, output_type="pt").images.shape == (1, 4, 8, 8)

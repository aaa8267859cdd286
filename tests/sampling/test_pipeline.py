"""The pipeline, with every scheduler."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTPipeline

from adadiff import AdaDiffPipeline, FixedExit, InputError, PatienceExit, ThresholdExit
from adadiff.sampling.schedulers import SCHEDULERS, scheduler_like
from adadiff.seeding import generator_for
from adadiff.training.config import DiffusionConfig
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
    images = [pipeline(2, generator=torch.Generator().manual_seed(5), output_type="pt").images for _ in range(2)]
    assert torch.equal(*images)


def test_pil_images_are_the_tensors(pipeline):
    tensor = pipeline(2, num_inference_steps=2, generator=generators(range(2)), output_type="pt").images
    pil = pipeline(2, num_inference_steps=2, generator=generators(range(2))).images
    assert pil[1].mode == "L"
    assert np.array_equal(np.array(pil[1]), (tensor[1, 0] * 255).round().byte().numpy())


def test_saved_and_loaded_it_samples_the_same(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = AdaDiffPipeline.from_pretrained(tmp_path)
    images = [p(2, tau=0.5, generator=generators(range(2)), output_type="pt").images for p in (pipeline, loaded)]
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
        pipe(2, class_labels=labels, num_inference_steps=2, generator=generators(range(2)), output_type="pt").images
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
        ({"output_type": "np"}, "output type"),
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


def test_an_unknown_scheduler_is_named(pipeline):
    with pytest.raises(InputError, match="did you mean ddim"):
        scheduler_like("dimm", pipeline.scheduler)


def test_latents_without_an_autoencoder_are_no_images():
    pipe = AdaDiffPipeline(make_model(in_channels=4), DiffusionConfig().build(in_latents=True))
    with pytest.raises(InputError, match="no autoencoder to decode"):
        pipe(num_inference_steps=1)
    assert pipe(num_inference_steps=1, output_type="pt").images.shape == (1, 4, 8, 8)

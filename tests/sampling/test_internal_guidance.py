"""Internal guidance, against a slow reference that runs every layer of every sample on its own."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from adadiff.policies import CorrectedScheduleExit, FixedExit, NeverExit, ThresholdExit
from adadiff.sampling import Guidance, InternalGuidance
from adadiff.utils.errors import InputError
from adadiff.utils.seeding import generator_for
from tests.conftest import make_model, predict


@torch.no_grad()
def slow_sampling(model, scheduler, steps, guidance, layers):
    """Sample classes 0..2, each on its own, with exits after given layers corrected by what full steps measured."""
    scheduler.set_timesteps(steps)
    internal, images = guidance.internal, []
    for k in range(3):
        sample = torch.randn(1, 1, 8, 8, generator=generator_for(0, k))
        memory = {}  # by row and layer: (step, correction) of every full step
        for step, time in enumerate(scheduler.timesteps):
            guided, pair = guidance.applies(step, steps), []
            for row, label in enumerate([k, model.config.null_class][: 1 + guided]):
                exits, _ = model.all_exits(sample, time[None], torch.tensor([label]))
                early = [torch.zeros_like(sample), *exits]  # after layers 0..N
                layer, known = layers[step], memory.get(row, [])
                if layer == model.depth or (not known and any(m for m in layers[:step] if m == model.depth)):
                    start, end = internal.interval
                    led = internal.weight if start <= step / steps < end else 0.0
                    prediction = early[-1] + led * (early[-1] - early[internal.layer])
                    memory[row] = [*known, (step, [prediction - each for each in early])]
                else:
                    (last, now), *rest = reversed(known)
                    prediction = early[layer] + now[layer]
                    if rest:
                        before, then = rest[0]
                        prediction += (step - last) / (last - before) * (now[layer] - then[layer])
                pair.append(prediction)
            final = pair[1] + guidance.scale * (pair[0] - pair[1]) if guided else pair[0]
            sample = scheduler.step(final, time, sample).prev_sample
        images.append(sample)
    return (torch.cat(images) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("layers", [(5,) * 6, (5, 1, 5, 0, 4, 5), (5, 5, 3, 3, 1, 0)])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.5)])
def test_it_leads_full_steps_and_what_is_corrected_to_them(class_pipeline, layers, interval):
    pipe = class_pipeline
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    guidance = Guidance(2.5, (0.0, 0.7), internal=InternalGuidance(2, 0.8, interval))
    arguments = {"class_labels": [0, 1, 2], "num_inference_steps": 6, "policy": CorrectedScheduleExit(layers)}

    def sample(guidance):
        generators = [generator_for(0, k) for k in range(3)]
        return pipe(**arguments, guidance=guidance, generator=generators, output_type="pt").images

    expected = slow_sampling(pipe.transformer, pipe.scheduler, 6, guidance, layers)
    torch.testing.assert_close(sample(guidance), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(sample(Guidance(2.5, (0.0, 0.7))), expected, atol=1e-3)


@torch.no_grad()
def test_exits_that_nothing_corrects_are_led_beyond_its_layer_alone():
    model, sample = make_model(), torch.randn(4, 1, 8, 8)
    predictions, uncertainties = model.all_exits(sample, torch.full((4,), 500))
    weights = torch.tensor([0.0, 0.5, 1.0, 2.0])
    scale = weights.view(-1, 1, 1, 1)
    for exit_layer in (1, 2, 4, 5):
        got = predict(model, sample, 500, policy=FixedExit(exit_layer), internal=(2, weights))
        final = predictions[exit_layer - 1]
        if exit_layer > 2:
            final = final + scale * (final - predictions[1])
        torch.testing.assert_close(got.sample, final, rtol=1e-5, atol=1e-5)
        assert got.exit_layers.tolist() == [exit_layer] * 4
    tau = uncertainties[:-1].flatten(2).mean(2).median().item()
    plain, led = (predict(model, sample, 500, policy=ThresholdExit(tau), internal=i) for i in (None, (2, weights)))
    assert torch.equal(plain.exit_layers, led.exit_layers)
    assert torch.equal(plain.sample[:1], led.sample[:1])


@torch.no_grad()
def test_it_costs_one_head_for_rows_that_are_led():
    model, sample = make_model(), torch.randn(2, 1, 8, 8)
    plain = predict(model, sample, 500)
    led = predict(model, sample, 500, internal=(2, torch.tensor([0.0, 0.5])))
    assert (led.flops - plain.flops).tolist() == [0, model.part_flops.heads[1]]


def test_what_does_not_fit_is_an_error(class_pipeline):
    for arguments, message in (
        ((0, 0.5), "the layer must be at least 1"),
        ((2, 0.0), "the weight above 0"),
        ((2, float("nan")), "the weight above 0"),
        ((2, 0.5, (0.5, 0.5)), "two fractions of the steps"),
    ):
        with pytest.raises(InputError, match=message):
            InternalGuidance(*arguments)
    with pytest.raises(InputError, match="the model's layers before the last are 1 to 4"):
        class_pipeline(class_labels=[0], guidance=Guidance(internal=InternalGuidance(5, 0.5)))
    with pytest.raises(InputError, match="choose one of the layers 1 to 4"):
        predict(make_model(), torch.randn(1, 1, 8, 8), 500, policy=NeverExit(), internal=(5, torch.ones(1)))
    with pytest.raises(InputError, match="either guidance, or its scale"):
        class_pipeline(class_labels=[0], guidance=Guidance(2.0), guidance_scale=3.0)

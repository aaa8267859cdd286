"""Classifier-free guidance, against a slow reference that runs every layer for both of each pair."""

import logging

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from adadiff import FixedExit, InputError, ThresholdExit
from adadiff.sampling import Guidance
from adadiff.utils.seeding import generator_for
from tests.conftest import make_model, predict

LABELS, NULL = [0, 2, 1], 3


def all_layers(model, x, t, label):
    """Predictions and mean uncertainties of one image after every layer."""
    predictions, uncertainties = model.all_exits(x, torch.tensor([t]), torch.tensor([label]))
    return predictions[:, 0], uncertainties.flatten(1).mean(1).tolist()


def slow_guided_sampling(model, scheduler, steps, scale, interval, tied):
    """Run all layers with the class and without it for each image alone, pick each one's exit, combine.

    The threshold of each step lies between two of the uncertainties after the second layer, so that some leave.
    """
    scheduler.set_timesteps(steps)
    images = [torch.randn(1, 1, 8, 8, generator=generator_for(0, k)) for k in range(len(LABELS))]
    taus, traces = [], []
    for step, t in enumerate(scheduler.timesteps.tolist()):
        guided = interval[0] <= step / steps < interval[1]
        runs = [
            [all_layers(model, x, t, each) for each in ([label, NULL] if guided else [label])]
            for x, label in zip(images, LABELS, strict=True)
        ]
        second = sorted(u[1] for pair in runs for _, u in pair)
        taus.append((second[len(second) // 2 - 1] + second[len(second) // 2]) / 2)
        for k, pair in enumerate(runs):
            may = [[i for i in range(1, model.depth) if u[i - 1] < taus[-1]] + [model.depth] for _, u in pair]
            both = min(set.intersection(*map(set, may)))
            left = [both if tied else each[0] for each in may]
            read = [predictions[i - 1] for (predictions, _), i in zip(pair, left, strict=True)]
            prediction = read[1] + scale * (read[0] - read[1]) if guided else read[0]
            images[k] = scheduler.step(prediction[None], t, images[k]).prev_sample
            traces.append((left[0], left[1] if guided else 0))
    exits = torch.tensor(traces).unflatten(0, (steps, -1)).permute(2, 0, 1)
    return (torch.cat(images) / 2 + 0.5).clamp(0, 1), exits, taus


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.25, 0.75)])
def test_tied_and_untied_pairs_are_the_slow_references(class_pipeline, tied, interval):
    pipe = class_pipeline
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    with torch.no_grad():
        pipe.transformer.backbone.class_embed.weight *= 8  # so that the two of a pair differ
        images, exits, taus = slow_guided_sampling(pipe.transformer, pipe.scheduler, 4, 2.5, interval, tied)
    output = pipe(
        class_labels=["cat", "owl", "dog"],
        num_inference_steps=4,
        guidance_scale=2.5,
        guidance_interval=interval,
        tied_exits=tied,
        tau=taus,
        generator=[generator_for(0, k) for k in range(3)],
        output_type="pt",
    )
    assert torch.equal(output.trace.exit_layers, exits[0])
    assert torch.equal(output.trace.unconditional_exit_layers, exits[1])
    assert len(exits[0].unique()) > 1
    guided = exits[1] > 0
    assert torch.equal(exits[0][guided], exits[1][guided]) == tied
    torch.testing.assert_close(output.images, images, rtol=1e-4, atol=1e-4)


@given(batch=st.integers(1, 6), quantile=st.floats(0.1, 0.9), seed=st.integers(0, 100))
def test_tied_halves_leave_when_both_may(batch, quantile, seed):
    model = make_model(seed=seed)
    halves, times = torch.randn(2 * batch, 1, 8, 8), torch.rand(2 * batch) * 1000
    with torch.no_grad():
        predictions, uncertainties = model.all_exits(halves, times)
        means = uncertainties.flatten(2).mean(2)
        tau = means[:-1].quantile(quantile).item() + 1e-6
        ties = torch.arange(batch).repeat(2)
        output = predict(model, halves, times, policy=ThresholdExit(tau), ties=ties)
    for k in range(batch):
        may = [i for i in range(1, 5) if max(means[i - 1, k], means[i - 1, k + batch]) < tau] + [5]
        assert output.exit_layers[[k, k + batch]].tolist() == [may[0]] * 2
        for place in (k, k + batch):
            torch.testing.assert_close(output.sample[place], predictions[may[0] - 1, place], rtol=1e-5, atol=1e-5)


def test_scale_1_runs_one_half_only(class_pipeline, monkeypatch):
    sizes = []
    embed = class_pipeline.transformer.backbone.embed

    def counted(sample, *rest, **conditions):
        sizes.append(len(sample))
        return embed(sample, *rest, **conditions)

    monkeypatch.setattr(class_pipeline.transformer.backbone, "embed", counted)
    plain = class_pipeline(class_labels=[1, 2], num_inference_steps=2, guidance_scale=1.0)
    assert sizes == [2, 2]
    assert not plain.trace.unconditional_exit_layers.any()
    class_pipeline(class_labels=[1, 2], num_inference_steps=2, guidance_scale=1.5, guidance_interval=(0.5, 1.0))
    assert sizes == [2, 2, 2, 4]


def test_the_trace_counts_both_of_a_pair(class_pipeline):
    trace = class_pipeline(
        class_labels=[0, 1],
        num_inference_steps=4,
        guidance_scale=2.0,
        guidance_interval=(0.0, 0.5),
        policy=FixedExit(2),
        return_uncertainties=True,
    ).trace
    assert trace.unconditional_exit_layers.tolist() == [[2, 2], [2, 2], [0, 0], [0, 0]]
    assert trace.layer_fraction == pytest.approx(2 / 5)
    assert trace.flops[0, 0] == 2 * trace.flops[2, 0]
    assert not trace.unconditional_uncertainties[0, :, :2].isnan().any()
    assert trace.unconditional_uncertainties[2].isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.5}, "at least 1"),
        ({"interval": (0.5, 0.5)}, "fractions of the steps"),
        ({"interval": (0.0, 1.5)}, "fractions of the steps"),
    ],
)
def test_bad_guidance_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        Guidance(**arguments)


def test_an_interval_that_guides_no_step_is_warned_of_once(class_pipeline, caplog):
    with caplog.at_level(logging.WARNING, "adadiff"):
        for interval in ((0.0, 0.1), (0.3, 0.4), (0.3, 0.4)):
            class_pipeline(class_labels=[0], num_inference_steps=4, guidance_scale=3, guidance_interval=interval)
        class_pipeline(class_labels=[0], num_inference_steps=4, guidance_interval=(0.3, 0.4))
    assert caplog.messages == [
        "no step is guided: none of 4 begins in the guidance interval [0.3, 0.4), so that the guidance scale 3 has no "
        "effect; widen the interval, or set the scale to 1"
    ]

"""Step caching against a version that recomputes everything and puts what was kept in its place."""

import pytest
import torch

from adadiff import AdaDiffPipeline, InputError, ThresholdExit
from adadiff.baselines import FirstBlockCaching, SkipCaching
from adadiff.exits.flops import flop_counter
from adadiff.training.config import DiffusionConfig
from tests.conftest import make_model, predict

IMAGE = torch.zeros(1, 1, 8, 8)
TIMES = (900.0, 700.0, 500.0, 300.0)


@pytest.fixture
def steps():
    """Noisy images of three samples, drifting from step to step, each at its own pace."""
    torch.manual_seed(0)
    start, drift = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    pace = torch.tensor([0.01, 0.3, 2.0])[:, None, None, None]
    return [start + k * pace * drift for k in range(4)]


def outputs_of_layers(model, sample, time, replaced=None):
    """Tokens after layers 0..N, one layer after the other; those of `replaced` are put in the place of its layer's."""
    backbone, tokens, skips = model.backbone, [], []
    state = backbone.embed(sample, torch.full((len(sample),), time))
    x = state.tokens
    tokens.append(x)
    for i in range(1, model.depth + 1):
        layer = backbone.layers[i - 1]
        x = layer(x, skips[model.depth - i]) if i > model.depth // 2 + 1 else layer(x)
        if replaced and replaced[0] == i:
            x = replaced[1]
        skips.append(x)
        tokens.append(x)
    return tokens


def read_off(model, tokens):
    return model.backbone.head(tokens[:, model.backbone.extra_tokens :])


@pytest.mark.parametrize(("interval", "shallow"), [(1, 1), (2, 1), (3, 2), (9, 1)])
@torch.no_grad()
def test_skip_caching_puts_the_kept_tokens_before_the_last_layers(steps, interval, shallow):
    model = make_model(depth=5)
    session = SkipCaching(model, interval, shallow).session(3)
    for step, (sample, time) in enumerate(zip(steps, TIMES, strict=True)):
        got = predict(session, sample, time, step=step)
        tokens = outputs_of_layers(model, sample, time)
        whole = step % interval == 0
        if whole:
            kept = tokens[5 - shallow]
        else:
            tokens = outputs_of_layers(model, sample, time, replaced=(5 - shallow, kept))
        torch.testing.assert_close(got.sample, read_off(model, tokens[5]), rtol=1e-4, atol=1e-4)
        assert got.exit_layers.tolist() == [5 if whole else 2 * shallow] * 3


@torch.no_grad()
def test_first_block_caching_adds_what_the_other_layers_added(steps):
    model = make_model(depth=5)
    session = FirstBlockCaching(model, 0.2).session(3)
    first, rest, ran = [None] * 3, [None] * 3, []
    for step, (sample, time) in enumerate(zip(steps, [500.0] * 4, strict=True)):
        got = predict(session, sample, time, step=step)
        ran.append([])
        for k in range(3):
            tokens = [x[k : k + 1] for x in outputs_of_layers(model, sample, time)]
            added = tokens[1] - tokens[0]
            if first[k] is None or (added - first[k]).abs().mean() / first[k].abs().mean() >= 0.2:
                first[k], rest[k] = added, tokens[5] - tokens[1]
                ran[-1].append(5)
            else:
                ran[-1].append(1)
            wanted = read_off(model, tokens[1] + rest[k])
            torch.testing.assert_close(got.sample[k : k + 1], wanted, rtol=1e-4, atol=1e-4)
        assert got.exit_layers.tolist() == ran[-1]
    assert ran[0] == [5, 5, 5]
    assert {1, 5} <= {layers for step in ran[1:] for layers in step}


@pytest.mark.parametrize("make", [lambda m: SkipCaching(m, 2), lambda m: FirstBlockCaching(m, 0.3)])
@torch.no_grad()
def test_flops_are_those_that_torch_counts(steps, make):
    baseline = make(make_model(depth=5))
    session, parts = baseline.session(3), baseline.part_flops
    assert parts.full > 0
    for step, sample in enumerate(steps):
        with flop_counter() as counter:
            output = predict(session, sample, 500.0, step=step)
        assert counter.get_total_flops() == output.flops.sum().item()


@torch.no_grad()
def test_pairs_of_guidance_are_run_together(steps):
    model = make_model(depth=5)
    session = FirstBlockCaching(model, 0.2).session(6)
    for step, sample in enumerate(steps):
        both = torch.cat([sample, sample.flip(0)])
        layers = predict(session, both, 500.0, step=step, ties=torch.arange(3).repeat(2)).exit_layers
        assert torch.equal(layers[:3], layers[3:])


def test_nothing_is_kept_from_one_sampling_to_the_next():
    model = make_model(depth=5)
    plain = AdaDiffPipeline(model, DiffusionConfig().build())
    for baseline, exact in (
        (SkipCaching(model, 1), True),
        (FirstBlockCaching(model, 0.0), True),
        (SkipCaching(model, 3), False),
        (FirstBlockCaching(model, 0.5), False),
    ):
        pipeline = plain.with_denoiser(baseline)
        runs = [
            pipe(batch_size=3, num_inference_steps=6, generator=torch.Generator().manual_seed(0), output_type="pt")
            for pipe in (plain, pipeline, pipeline)
        ]
        assert torch.equal(runs[1].images, runs[2].images)
        assert torch.allclose(runs[0].images, runs[1].images, atol=1e-4) == exact
        assert (runs[1].trace.layer_fraction == 1) == exact


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: SkipCaching(m, 0), "at least 1 step"),
        (lambda m: SkipCaching(m, 2, shallow=3), "between 1 and 2"),
        (lambda m: FirstBlockCaching(m, -0.1), "at least 0"),
        (lambda m: FirstBlockCaching(m, float("nan")), "at least 0"),
        (lambda m: predict(SkipCaching(m, 2), IMAGE, 1.0, policy=ThresholdExit(0.1)), "this method has no exits"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(InputError, match=message):
        make(make_model())

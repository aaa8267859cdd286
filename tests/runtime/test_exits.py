"""Early exit against a slow reference that runs every layer for everybody and picks afterwards."""

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adadiff import AdaptiveModel, FixedExit, NeverExit, PatienceExit, ThresholdExit
from adadiff.backbones import Backbone, BackboneConfig, LayerState
from adadiff.exits.flops import flop_counter
from tests.conftest import make_model, predict


def every_layer(model, images, times):
    """Predictions (N, batch, ...) and mean uncertainties (N, batch) of all layers, each sample run alone."""
    per_sample = [model.all_exits(images[k : k + 1], times[k : k + 1]) for k in range(len(images))]
    predictions = torch.cat([p for p, _ in per_sample], dim=1)
    uncertainties = torch.cat([u for _, u in per_sample], dim=1).flatten(2).mean(2)
    return predictions, uncertainties


def pick(predictions, uncertainties, passes):
    """The first layer for which `passes(layer, uncertainties up to it)`, sample by sample."""
    depth, batch = uncertainties.shape
    layers = []
    for k in range(batch):
        history = uncertainties[:, k].tolist()
        passing = [i for i in range(1, depth) if passes(i, history[:i])]
        layers.append(passing[0] if passing else depth)
    return layers, torch.stack([predictions[i - 1, k] for k, i in enumerate(layers)])


def between(uncertainties, quantile):
    """A threshold that lies well between two of the values met, so that rounding cannot decide."""
    values = uncertainties.flatten().sort().values
    place = min(int(quantile * (len(values) - 1)), len(values) - 2)
    candidates = sorted(range(len(values) - 1), key=lambda j: abs(j - place))
    j = next((j for j in candidates if values[j + 1] - values[j] > 1e-5), None)
    return 0.5 if j is None else ((values[j] + values[j + 1]) / 2).item()


@given(
    batch=st.integers(1, 9),
    estimator=st.sampled_from(["concat", "token", "attention"]),
    head=st.sampled_from(["shared", "per_layer"]),
    depth=st.sampled_from([3, 5, 7]),
    size=st.sampled_from([(4, 4), (8, 8), (4, 12)]),
    channels=st.integers(1, 3),
    quantile=st.floats(0, 1),
    min_layer=st.integers(1, 3),
    rule=st.sampled_from(["threshold", "per layer", "per step", "patience"]),
    seed=st.integers(0, 1000),
)
def test_exits_and_outputs_are_the_slow_references(
    batch, estimator, head, depth, size, channels, quantile, min_layer, rule, seed
):
    model = make_model(size, channels, head, estimator, seed, depth=depth)
    images, times = torch.randn(batch, channels, *size), torch.rand(batch) * 1000
    with torch.no_grad():
        predictions, uncertainties = every_layer(model, images, times)
        tau = between(uncertainties, quantile)
        per_layer = [0.0] + [between(uncertainties, (quantile + 0.1 * i) % 1) for i in range(1, depth)]
        policy, passes = {
            "threshold": (ThresholdExit(tau, min_layer=min_layer), lambda i, u: i >= min_layer and u[-1] < tau),
            "per layer": (ThresholdExit(tuple(per_layer), per="layer"), lambda i, u: u[-1] < per_layer[i - 1]),
            "per step": (ThresholdExit((0.0, 1.0, tau)), lambda i, u: u[-1] < tau),
            "patience": (
                PatienceExit(tau, patience=2, min_layer=min_layer),
                lambda i, u: i >= min_layer and sum(value < tau for value in u[min_layer - 1 :]) >= 2,
            ),
        }[rule]
        layers, outputs = pick(predictions, uncertainties, passes)
        got = predict(model, images, times, policy=policy, step=2)
    assert got.exit_layers.tolist() == layers
    torch.testing.assert_close(got.sample, outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", ["concat", "token", "attention"])
def test_a_sample_is_the_same_alone_and_in_any_batch(estimator):
    model = make_model(estimator_type=estimator, depth=7)
    images, times = torch.randn(9, 1, 8, 8), torch.rand(9) * 1000
    with torch.no_grad():
        tau = between(every_layer(model, images, times)[1][0], 0.5)
        together = predict(model, images, times, policy=ThresholdExit(tau))
        assert len(set(together.exit_layers.tolist())) > 1
        for k in range(9):
            alone = predict(model, images[k : k + 1], times[k : k + 1], policy=ThresholdExit(tau))
            assert alone.exit_layers.item() == together.exit_layers[k]
            torch.testing.assert_close(alone.sample[0], together.sample[k], rtol=1e-5, atol=1e-5)
        order = torch.randperm(9)
        shuffled = predict(model, images[order], times[order], policy=ThresholdExit(tau))
        assert torch.equal(shuffled.exit_layers, together.exit_layers[order])


@pytest.mark.parametrize("policy", [None, NeverExit(), ThresholdExit(0.0), FixedExit(5)])
def test_without_exits_the_output_is_the_plain_backbones_bit_for_bit(model, policy):
    images, times = torch.randn(6, 1, 8, 8), torch.rand(6) * 1000
    with torch.no_grad():
        assert torch.equal(predict(model, images, times, policy=policy).sample, model.backbone(images, times))
        with_estimators = predict(model, images, times, policy=policy, return_uncertainties=True)
        assert torch.equal(with_estimators.sample, model.backbone(images, times))
        assert not with_estimators.uncertainties.isnan().any()


def test_fixed_exit_leaves_everybody_there(model):
    with torch.no_grad():
        output = predict(model, torch.randn(3, 1, 8, 8), 5, policy=FixedExit(2))
    assert output.exit_layers.tolist() == [2, 2, 2]


@pytest.mark.parametrize("estimator", ["concat", "token", "attention"])
@pytest.mark.parametrize("options", [{}, {"num_classes": 4}, {"context_dim": 6, "context_length": 3, "time_mlp": True}])
@pytest.mark.parametrize("min_layer", [1, 3])
def test_the_reported_flops_are_what_the_counter_sees(estimator, options, min_layer):
    model = make_model(estimator_type=estimator, depth=7, **options)
    batch = 8
    conditions = {}
    if "num_classes" in options:
        conditions["class_labels"] = torch.randint(4, (batch,))
    if "context_dim" in options:
        conditions["encoder_hidden_states"] = torch.randn(batch, 3, 6)
    images, times = torch.randn(batch, 1, 8, 8), torch.rand(batch) * 1000
    with torch.no_grad():
        seen = predict(model, images, times, return_uncertainties=True, **conditions).uncertainties
        policy = ThresholdExit(between(seen[:, min_layer - 1], 0.5), min_layer=min_layer)
        with flop_counter() as counter:
            output = predict(model, images, times, policy=policy, **conditions)
        assert len(set(output.exit_layers.tolist())) > 1
        assert output.flops.sum().item() == pytest.approx(counter.get_total_flops(), rel=0.005)
        with flop_counter() as counter:
            model.backbone(images, times, **conditions)
        assert batch * model.part_flops.full == pytest.approx(counter.get_total_flops(), rel=0.005)


def test_no_head_runs_for_a_sample_that_stays_and_no_layer_for_one_that_left(model, monkeypatch):
    heads, layers = [], []
    head, layer = model.predict, model.backbone.layer
    monkeypatch.setattr(model, "predict", lambda i, state: heads.append((i, len(state.tokens))) or head(i, state))
    monkeypatch.setattr(
        model.backbone, "layer", lambda i, state: layers.append((i, len(state.tokens))) or layer(i, state)
    )
    images, times = torch.randn(9, 1, 8, 8), torch.rand(9) * 1000
    with torch.no_grad():
        tau = between(every_layer(model, images, times)[1][0], 0.5)
        heads.clear(), layers.clear()
        exits = predict(model, images, times, policy=ThresholdExit(tau)).exit_layers.tolist()
    assert heads == [(i, exits.count(i)) for i in range(1, 6) if i in exits]
    assert layers == [(i, sum(e >= i for e in exits)) for i in range(1, max(exits) + 1)]


def test_a_call_leaves_nothing_behind_on_the_model(model):
    images = torch.randn(4, 1, 8, 8)
    model.part_flops  # noqa: B018 - derived from the sizes alone, once
    before = copy.deepcopy(model.state_dict()), {n: set(vars(m)) for n, m in model.named_modules()}
    with torch.no_grad():
        first = predict(model, images, 400, policy=ThresholdExit(0.5))
        predict(model, torch.randn(7, 1, 8, 8), 3, policy=ThresholdExit(0.9))
        again = predict(model, images, 400, policy=ThresholdExit(0.5))
    assert torch.equal(first.sample, again.sample)
    assert {n: set(vars(m)) for n, m in model.named_modules()} == before[1]
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())


class PlainHead(torch.nn.Linear):
    def __init__(self):
        super().__init__(6, 6)

    def forward(self, patch_tokens):
        return super().forward(patch_tokens).transpose(1, 2).unflatten(2, (2, 3))


class PlainBackbone(Backbone):
    """A backbone without skips, conditions or patches larger than a pixel."""

    @dataclass(frozen=True)
    class Config(BackboneConfig):
        patch_size: int = 1
        width: int = 6
        depth: int = 4

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(4))
        self.head = PlainHead()

    def embed(self, sample, timestep, class_labels=None, encoder_hidden_states=None):
        return LayerState(sample.flatten(2).transpose(1, 2), timestep[:, None].expand(-1, 6) / 1000)

    def layer(self, i, state):
        return LayerState(torch.tanh(self.layers[i - 1](state.tokens)), state.time)

    def patch_tokens(self, state):
        return state.tokens


def test_a_backbone_that_keeps_the_contract_needs_nothing_else():
    torch.manual_seed(0)
    model = AdaptiveModel(sample_size=(2, 3), in_channels=6, backbone_type=PlainBackbone.name()).eval()
    with torch.no_grad():
        images, times = torch.randn(6, 6, 2, 3), torch.rand(6) * 1000
        predictions, uncertainties = every_layer(model, images, times)
        tau = between(uncertainties, 0.5)
        layers, outputs = pick(predictions, uncertainties, lambda i, u: u[-1] < tau)
        got = predict(model, images, times, policy=ThresholdExit(tau))
    assert got.exit_layers.tolist() == layers
    torch.testing.assert_close(got.sample, outputs)


def test_bfloat16_exits_too(model):
    model.to(torch.bfloat16)
    with torch.no_grad():
        output = predict(model, torch.randn(5, 1, 8, 8, dtype=torch.bfloat16), 100, policy=ThresholdExit(1.0))
    assert output.sample.dtype == torch.bfloat16
    assert output.exit_layers.tolist() == [1] * 5

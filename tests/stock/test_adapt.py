"""Adapting stock pipelines: what is fitted, where samples exit, and what is refused."""

from __future__ import annotations

import logging
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import adadiff
from adadiff import InputError
from adadiff.stock import Adaptation, FittedExits, StockSampler
from adadiff.stock.adapting.projection import Projection, applied
from adadiff.stock.exits import checked_exits
from tests.stock.adapting.test_heads import closed_form
from tests.stock.calls import attributes, blocks_of, depth_of, first_call, numbered, prediction
from tests.stock.tiny import STEPS, TinyPipeline, build, wan

_ADAPTED: dict[str, Adaptation] = {}


def adapted(tiny: TinyPipeline, **options: Any) -> Adaptation:
    """Adapt a tiny pipeline to few samples; the same adaptation again if nothing else is asked for."""
    name = type(tiny.transformer).__name__
    prompts, arguments = numbered(tiny)
    if options or name not in _ADAPTED:
        found = adadiff.adapt(tiny.pipe, prompts, **{"samples": 3, "bins": 3, **arguments, **options})
        if options:
            return found
        _ADAPTED[name] = found
    return _ADAPTED[name]


def sampler_of(tiny: TinyPipeline) -> StockSampler:
    """Samples a pipeline by number, with other noise than what it was adapted to."""
    prompts, arguments = numbered(tiny)
    return StockSampler(tiny.pipe, prompts, 5, arguments)


def middle_threshold(tiny: TinyPipeline, adaptation: Adaptation, monkeypatch: pytest.MonkeyPatch) -> float:
    """A threshold that half of all uncertainties are below."""
    seen: list[Tensor] = []
    uncertainty = FittedExits.uncertainty

    def noted(self: FittedExits, layer: int, time: float, tokens: Tensor) -> Tensor:
        seen.append(uncertainty(self, layer, time, tokens))
        return seen[-1]

    with monkeypatch.context() as patched:
        patched.setattr(FittedExits, "uncertainty", noted)
        adadiff.enable(tiny.pipe, adadiff.ThresholdExit(1e-9), adaptation=adaptation)
        sampler_of(tiny)(range(3))
    values = torch.cat(seen).sort().values
    gaps = values.diff()[len(values) // 3 : 2 * len(values) // 3]
    widest = len(values) // 3 + int(gaps.argmax())  # in the middle of a gap, far from any decision
    return float(values[widest : widest + 2].mean())


def test_samples_exit_as_if_each_were_alone(tiny: TinyPipeline, monkeypatch: pytest.MonkeyPatch):
    sampler = sampler_of(tiny)
    full, before = sampler(range(3)), attributes(tiny.transformer)
    adaptation = adapted(tiny)
    if not adaptation.transformers["transformer"].settings.separable:
        with pytest.raises(InputError, match="HunyuanDiT2DModel hands more from layer to layer"):
            adadiff.enable(tiny.pipe, adadiff.ThresholdExit(0.1), adaptation=adaptation)
        return
    tau = middle_threshold(tiny, adaptation, monkeypatch)
    adadiff.enable(tiny.pipe, adadiff.ThresholdExit(tau), adaptation=adaptation)
    together, trace = sampler(range(3)), adadiff.trace(tiny.pipe)
    assert 0 < trace.layer_fraction < 1
    for k in range(3):
        torch.testing.assert_close(sampler([k])[0], together[k], rtol=0, atol=3e-5 * full.abs().max().item())
        of_sample = [call.row_layers[0] for call in adadiff.trace(tiny.pipe).calls]
        assert of_sample == [call.row_layers[k] for call in trace.calls]
    adadiff.enable(tiny.pipe, adadiff.ThresholdExit(1e-9), adaptation=adaptation)
    torch.testing.assert_close(sampler(range(3)), full, rtol=0, atol=1e-5 * full.abs().max().item())
    adadiff.disable(tiny.pipe)
    assert torch.equal(sampler(range(3)), full)
    assert attributes(tiny.transformer) == before


def test_samples_may_be_adapted_to_one_by_one():
    tiny = build("hunyuandit")  # whose rotary embeddings are a pair, as the rows of one guided sample are
    prompts, arguments = numbered(tiny)
    adaptation = adadiff.adapt(tiny.pipe, prompts, exits=[2], samples=2, batch_size=1, **arguments)
    known = adaptation.transformers["transformer"].settings.row_inputs
    assert not any(known[name] for name in known if name.startswith("image_rotary_emb"))


def test_heads_are_the_closed_form_of_all_samplings():
    tiny, layer, samples = build("flux"), 2, 4  # guidance in two calls a step
    prompts, arguments = numbered(tiny)
    adaptation = adapted(tiny, exits=[layer], samples=samples, bins=1, batch_size=3, true_cfg_scale=1.0)
    fitted = adaptation.transformers["transformer"]
    rows = exits_by_hand(
        tiny, layer, StockSampler(tiny.pipe, prompts, 0, {**arguments, "true_cfg_scale": 1.0}), samples
    )
    torch.testing.assert_close(fitted.heads[0, 0], closed_form(*rows, 0.03), rtol=1e-3, atol=1e-5)


def exits_by_hand(tiny: TinyPipeline, layer: int, sampler: StockSampler, samples: int) -> tuple[Tensor, Tensor]:
    """What an exit reads along full samplings, (tokens, width), and what it should add, (tokens, out)."""
    model, calls, found = tiny.transformer, [], []
    handle = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    for k in range(samples):
        sampler([k])
    handle.remove()
    projection, blocks = Projection(model, "proj_out"), blocks_of(model)
    for inputs in calls:
        projection.place()
        prediction(model, inputs)
        full = projection.output
        blocks.cut(layer)
        prediction(model, inputs)
        blocks.restore()
        found.append((projection.tokens.flatten(0, 1), (full - projection.output).flatten(0, 1)))
        projection.restore()
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def test_guided_combinations_count_beside_the_single_predictions():
    tiny = build("dit")
    adaptation = adapted(tiny, exits=[1], bins=1, samples=2)
    none = adapted(tiny, exits=[1], bins=1, samples=2, guidance_scale=1.0)
    exit_of = [each.transformers["transformer"] for each in (adaptation, none)]
    assert not torch.allclose(*(each.heads for each in exit_of), rtol=0.01)


def test_early_predictions_are_those_of_the_fitted_heads():
    tiny, layer = build("dit"), 2
    adaptation = adapted(tiny)
    fitted = adaptation.transformers["transformer"]
    inputs, seen = first_call(tiny), []
    time = float(inputs[1]["timestep"][0])
    adadiff.enable(tiny.pipe, adadiff.FixedExit(layer), adaptation=adaptation)
    handle = tiny.transformer.register_forward_hook(lambda *call: seen.append(call[-1]))
    tiny()
    handle.remove()
    adadiff.disable(tiny.pipe)
    model, blocks, projection = (
        tiny.transformer,
        blocks_of(tiny.transformer),
        Projection(tiny.transformer, "proj_out_2"),
    )
    projection.place()
    blocks.cut(layer)
    prediction(model, inputs)
    blocks.restore()
    head = fitted.head(layer, time)
    wanted = projection.output + applied(head, projection.tokens)
    with projection.fitted(head):
        blocks.cut(layer)
        early = prediction(model, inputs)[0]
        assert torch.equal(projection.output + applied(head, projection.tokens), wanted)
    blocks.restore()
    projection.restore()
    assert torch.equal(seen[0].sample, early)


def test_fitted_heads_err_less_on_fresh_samples(tiny: TinyPipeline):
    if type(tiny.transformer).__name__ not in (
        "DiTTransformer2DModel",
        "SD3Transformer2DModel",
        "WanTransformer3DModel",
    ):
        pytest.skip("three families are enough")
    for plain, fitted in adapted(tiny).errors().values():
        assert fitted < 0.7 * plain


def test_pairs_of_guidance_exit_together(monkeypatch: pytest.MonkeyPatch):
    tiny = build("dit")
    adaptation = adapted(tiny)
    tau = middle_threshold(tiny, adaptation, monkeypatch)
    adadiff.enable(tiny.pipe, adadiff.ThresholdExit(tau), adaptation=adaptation)
    sampler_of(tiny)(range(3))
    calls = adadiff.trace(tiny.pipe).calls
    assert all(call.row_layers[:3] == call.row_layers[3:] for call in calls)
    assert len({call.row_layers for call in calls}) > 1
    adadiff.disable(tiny.pipe)


def test_the_trace_counts_rows_and_the_flops_that_were_spent(monkeypatch: pytest.MonkeyPatch):
    tiny = build("pixart")
    adaptation = adapted(tiny)
    tau = middle_threshold(tiny, adaptation, monkeypatch)
    adadiff.disable(tiny.pipe)
    flops = []
    for enabled in (False, True):
        if enabled:
            adadiff.enable(tiny.pipe, adadiff.ThresholdExit(tau), adaptation=adaptation)
        with FlopCounterMode(display=False) as counter:
            sampler_of(tiny)(range(3))
        flops.append(counter.get_total_flops())
    trace = adadiff.trace(tiny.pipe)
    rows = [layer for call in trace.calls for layer in call.row_layers]
    assert len(rows) == 6 * len(trace.calls)
    assert trace.layer_fraction == pytest.approx(sum(rows) / len(rows) / depth_of(tiny))
    assert trace.compute_fraction == pytest.approx(flops[1] / flops[0], abs=0.02)
    adadiff.disable(tiny.pipe)


def test_nothing_is_held_between_calls(monkeypatch: pytest.MonkeyPatch):
    tiny = build("dit")
    adaptation = adapted(tiny)
    tau = middle_threshold(tiny, adaptation, monkeypatch)
    adadiff.enable(tiny.pipe, adadiff.ThresholdExit(tau), adaptation=adaptation)
    seen: list[weakref.ref[Tensor]] = []
    forward = Projection.forward

    def noted(self: Projection, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(weakref.ref(tokens))
        return forward(self, tokens, *args, **kwargs)

    monkeypatch.setattr(Projection, "forward", noted)
    tiny()
    adadiff.disable(tiny.pipe)
    assert len(seen) > STEPS
    assert all(tokens() is None for tokens in seen)


def test_each_of_several_transformers_has_exits_of_its_own():
    tiny = build(wan, transformers=2)
    adaptation = adapted(tiny, samples=2)
    early, late = (adaptation.transformers[name].settings.times for name in ("transformer", "transformer_2"))
    assert min(early) > max(late)
    adadiff.enable(tiny.pipe, adadiff.ThresholdExit(0.5), adaptation=adaptation)
    tiny()
    layers = adadiff.trace(tiny.pipe).exit_layers
    assert all(layers[name, call] for name in adaptation.transformers for call in ("cond", "uncond"))
    assert adadiff.trace(tiny.pipe).layer_fraction < 1
    adadiff.disable(tiny.pipe)


def test_tables_decide_by_step_and_layer():
    tiny = build("dit")
    adaptation = adapted(tiny)
    table = [[0.0, 0.0, 0.0] for _ in range(STEPS)]
    table[1][1] = table[3][0] = 1.0
    adadiff.enable(tiny.pipe, adadiff.TableExit(tuple(map(tuple, table))), adaptation=adaptation)
    tiny()
    assert adadiff.trace(tiny.pipe).exit_layers["transformer", "call 0"] == {0: 4, 1: 2, 2: 4, 3: 1, 4: 4, 5: 4}
    adadiff.disable(tiny.pipe)


def test_policies_per_step_are_stretched_with_a_warning(caplog: pytest.LogCaptureFixture):
    tiny = build("dit")
    adadiff.enable(tiny.pipe, adadiff.ThresholdExit((1e-9, 1.0)), adaptation=adapted(tiny))
    with caplog.at_level(logging.WARNING):
        tiny()
    assert caplog.messages == [f"the schedule has 2 steps, and is stretched to the {STEPS} sampled"]
    layers = adadiff.trace(tiny.pipe).exit_layers["transformer", "call 0"]
    assert layers == {0: 4, 1: 4, 2: 4, 3: 1, 4: 1, 5: 1}
    adadiff.disable(tiny.pipe)


def test_corrections_are_measured_against_the_fitted_heads():
    tiny = build("dit")
    full = tiny()
    errors = []
    for adaptation in (None, adapted(tiny)):
        adadiff.enable(tiny.pipe, adadiff.CorrectedScheduleExit((4, 4, 4, 4, 4, 1)), adaptation=adaptation)
        errors.append(float(((tiny() - full) ** 2).mean()))
    adadiff.disable(tiny.pipe)
    assert 0 < errors[1] != errors[0] > 0
    assert max(errors) < 1e-3 * float(full.var())


def test_the_pipeline_stays_enabled_as_it_was():
    tiny = build("dit")
    adadiff.enable(tiny.pipe, adadiff.FixedExit(2))
    early = tiny()
    adapted(tiny, samples=2)
    assert torch.equal(tiny(), early)
    assert adadiff.trace(tiny.pipe).layer_fraction == 0.5
    with pytest.raises(InputError, match="takes no argument"):
        adapted(tiny, wrong=1)
    assert torch.equal(tiny(), early)
    adadiff.disable(tiny.pipe)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "samples is 1: it must be at least 2"),
        ({"bins": 0}, "bins is 0: it must be at least 1"),
        ({"exits": [0, 9]}, r"exits is \(0, 9\): name layers in 1 to 3"),
        ({"exits": []}, "name layers in 1 to 3"),
        ({"exits": 3}, r"exits is 3: name layers in 1 to 3, as in \[1, 3\]"),
        ({"exits": [1.5]}, r"exits is \(1.5,\): name layers"),
    ],
)
def test_invalid_arguments(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        adapted(build("dit"), **options)


def test_exits_may_be_any_integers():
    assert checked_exits(np.array([3, 1, 3]), 4) == (1, 3)  # type: ignore[arg-type]


def test_policies_that_read_uncertainties_need_an_adaptation_that_fits():
    tiny, adaptation = build("dit"), adapted(build("dit"), exits=[1, 2])
    with pytest.raises(InputError, match=r"adaptation=adadiff.adapt\(pipe, prompts\)"):
        adadiff.enable(tiny.pipe, adadiff.ThresholdExit(0.1))
    table = adadiff.TableExit(((0.0, 0.0, 0.5),) * STEPS)
    with pytest.raises(InputError, match="thresholds at layer 3, and the adaptation's exits are after layers 1, 2"):
        adadiff.enable(tiny.pipe, table, adaptation=adaptation)
    with pytest.raises(InputError, match="SD3Transformer2DModel has no linear map proj_out_2 from 16 to 32"):
        adadiff.enable(build("sd3").pipe, adadiff.ThresholdExit(0.1), adaptation=adaptation)
    with pytest.raises(InputError, match=r"3 is no adaptation: give what adadiff\.adapt returned, or its folder"):
        adadiff.enable(tiny.pipe, adadiff.ThresholdExit(0.1), adaptation=3)  # type: ignore[arg-type]


def test_other_weights_are_warned_of(caplog: pytest.LogCaptureFixture):
    tiny, adaptation = build("dit"), adapted(build("dit"))
    with caplog.at_level(logging.WARNING):
        adadiff.enable(tiny.pipe, adadiff.ThresholdExit(0.1), adaptation=adaptation)
    assert not caplog.messages
    with torch.no_grad():
        tiny.transformer.proj_out_2.weight.add_(1.0)
    with caplog.at_level(logging.WARNING):
        adadiff.enable(tiny.pipe, adadiff.ThresholdExit(0.1), adaptation=adaptation)
    assert caplog.messages == ["the adaptation was fitted for other weights, or for weights in another precision"]

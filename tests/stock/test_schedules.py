"""Policies on stock pipelines: what early exits predict, which schedulers they follow, and which are refused."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import adadiff
from adadiff import BatchMeanExit, CorrectedScheduleExit, FixedExit, InputError, ScheduleExit, TableExit, ThresholdExit
from tests.stock.calls import depth_of, schedule
from tests.stock.tiny import STEPS, TinyPipeline, build, pixart

SCHEDULERS = (
    *("DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("LCMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"),
)


def shortened(model: nn.Module, layers: int) -> nn.Module:
    """A copy of a model with its last layers removed."""
    short = copy.deepcopy(model)
    for name in ("transformer_blocks", "blocks", "single_transformer_blocks"):
        if name in short._modules:
            kept = getattr(short, name)[:layers]
            setattr(short, name, kept)
            layers -= len(kept)
    return short


class Reference:
    """A transformer's forward pass under a schedule, by running copies of the model that have fewer layers.

    Args:
        model: The transformer.
        layers: The exit layer at each step.
        corrected: Whether early exits are corrected.
        calls: Calls of the model per step.
    """

    def __init__(self, model: nn.Module, layers: tuple[int, ...], corrected: bool, calls: int) -> None:
        self.full, self.layers, self.corrected, self.calls = copy.deepcopy(model), layers, corrected, calls
        self.early = {layer: shortened(model, layer) for layer in set(layers) if layer}
        self.called = 0
        self.added: dict[Any, list[tuple[int, Tensor]]] = defaultdict(list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        step, kind = divmod(self.called, self.calls)
        self.called += 1
        depth, layer = max(self.layers), self.layers[step]
        full = self.full(*args, **kwargs)  # at layer 0 it gives the shape alone
        if layer == depth:
            self.added[0, kind].append((step, full[0]))  # after layer 0 nothing is predicted
            for each, model in self.early.items():
                self.added[each, kind].append((step, full[0] - model(*args, **kwargs)[0]))
            return full
        output = self.early[layer](*args, **kwargs) if layer else tree_map(torch.zeros_like, full)
        known = self.added[layer, kind]
        if not self.corrected or not known:
            return output
        at, added = known[-1]
        if len(known) > 1:
            at_before, before = known[-2]
            added = added + (step - at) / (at - at_before) * (added - before)
        return tree_map(lambda leaf: leaf + added, output)


@pytest.mark.parametrize("corrected", [False, True], ids=["plain", "corrected"])
@pytest.mark.parametrize(("name", "calls"), [("sd3", 1), ("flux", 2), ("wan", 2)])
def test_exits_predict_what_a_shortened_model_and_its_corrections_do(name: str, calls: int, corrected: bool):
    tiny = build(name)
    depth = depth_of(tiny)
    layers = (depth, 1, depth, 3, 1, depth, 3, 3)
    adadiff.enable(tiny.pipe, CorrectedScheduleExit(layers) if corrected else ScheduleExit(layers))
    got = tiny(num_inference_steps=len(layers))
    adadiff.disable(tiny.pipe)
    tiny.transformer.forward = Reference(tiny.transformer, layers, corrected, calls)
    wanted = tiny(num_inference_steps=len(layers))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_a_fixed_exit_runs_the_same_layers_at_every_step():
    tiny = build("pixart")
    adadiff.enable(tiny.pipe, FixedExit(2))
    got = tiny()
    assert {call.layers for call in adadiff.trace(tiny.pipe).calls} == {2}
    adadiff.disable(tiny.pipe)
    tiny.pipe.transformer = shortened(tiny.transformer, 2)
    assert torch.equal(tiny(), got)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_schedule_counts_the_evaluations_of_any_scheduler(name: str):
    tiny = build(pixart, scheduler=getattr(diffusers, name)())
    stock = tiny()
    steps = len(tiny.pipe.scheduler.timesteps)
    policy = schedule(tiny, steps)
    adadiff.enable(tiny.pipe, policy)
    first = tiny()
    calls = adadiff.trace(tiny.pipe).calls
    assert [(call.step, call.layers) for call in calls] == list(enumerate(policy.layers))
    assert torch.equal(tiny(), first)
    adadiff.disable(tiny.pipe)
    assert torch.equal(tiny(), stock)


def test_a_scheduler_put_in_place_while_enabled_is_followed():
    tiny = build(pixart, scheduler=diffusers.DDIMScheduler())
    adadiff.enable(tiny.pipe, schedule(tiny))
    tiny()
    tiny.pipe.scheduler = diffusers.EulerDiscreteScheduler()
    changed = tiny()
    fresh = build(pixart, scheduler=diffusers.EulerDiscreteScheduler())
    adadiff.enable(fresh.pipe, schedule(fresh))
    assert torch.equal(fresh(), changed)


def test_another_number_of_steps_stretches_the_schedule_and_warns_once(caplog: pytest.LogCaptureFixture):
    tiny = build("pixart")
    policy = schedule(tiny)
    adadiff.enable(tiny.pipe, policy)
    with caplog.at_level(logging.WARNING, "adadiff"):
        tiny()
        assert caplog.messages == []
        for _ in range(2):
            tiny(num_inference_steps=9)
    assert caplog.messages == ["the schedule has 6 steps, and is stretched to the 9 sampled"]
    layers = adadiff.trace(tiny.pipe).exit_layers["transformer", "call 0"]
    assert layers == dict(enumerate(policy.stretched(9).layers))


def test_enabling_again_replaces_the_policy():
    tiny = build("pixart")
    stock = tiny()
    for layer in (1, 3):
        adadiff.enable(tiny.pipe, FixedExit(layer))
        tiny()
        assert adadiff.trace(tiny.pipe).layer_fraction == layer / depth_of(tiny)
    with pytest.raises(InputError, match="exit layer is 9"):
        adadiff.enable(tiny.pipe, FixedExit(9))
    tiny()
    assert adadiff.trace(tiny.pipe).layer_fraction == 3 / depth_of(tiny)  # the one before is kept
    for _ in range(2):
        adadiff.disable(tiny.pipe)
        assert torch.equal(tiny(), stock)


@pytest.mark.parametrize(
    "policy",
    [ThresholdExit(0.1), BatchMeanExit(0.1), TableExit(((0.1, 1.0, 1.0, 1.0),) * STEPS)],
    ids=lambda policy: type(policy).__name__,
)
def test_policies_that_read_uncertainties_are_refused(policy: adadiff.ExitPolicy):
    with pytest.raises(InputError, match=f"{type(policy).__name__} decides by uncertainties"):
        adadiff.enable(build("pixart").pipe, policy)


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_layer_0_carries_on_the_full_predictions(name: str):
    tiny = build(name)
    depth = depth_of(tiny)
    layers = (depth, 0, depth, 0, 0, depth, 1, 0)
    adadiff.enable(tiny.pipe, CorrectedScheduleExit(layers))
    got = tiny(num_inference_steps=len(layers))
    exits = adadiff.trace(tiny.pipe).exit_layers
    assert all(each == dict(enumerate(layers)) for each in exits.values())
    adadiff.disable(tiny.pipe)
    tiny.transformer.forward = Reference(tiny.transformer, layers, True, len(exits))
    torch.testing.assert_close(got, tiny(num_inference_steps=len(layers)), rtol=1e-4, atol=1e-4)


def test_layer_0_needs_a_full_step_before():
    with pytest.raises(InputError, match="step 1 is at layer 0"):
        adadiff.enable(build("pixart").pipe, CorrectedScheduleExit((1, 0, 5, 0, 5, 1)))


def test_the_trace_belongs_to_the_latest_sampling():
    tiny: TinyPipeline = build("flux")
    with pytest.raises(InputError, match="adadiff is not enabled"):
        adadiff.trace(tiny.pipe)
    adadiff.enable(tiny.pipe, schedule(tiny))
    with pytest.raises(InputError, match="nothing was sampled"):
        _ = adadiff.trace(tiny.pipe).layer_fraction
    tiny()
    trace = adadiff.trace(tiny.pipe)
    assert [(call.step, call.kind) for call in trace.calls] == [
        (step, kind) for step in range(STEPS) for kind in ("cond", "uncond")
    ]
    tiny(true_cfg_scale=1.0)
    assert {call.kind for call in adadiff.trace(tiny.pipe).calls} == {"cond"}
    assert len(trace.calls) == 2 * STEPS

"""What holds for the pipelines of every family of stock transformers."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import adadiff
from adadiff import CorrectedScheduleExit, NeverExit, ScheduleExit
from adadiff.runtime import Corrections
from adadiff.stock import views
from tests.stock.calls import attributes, blocks_of, depth_of, equal, first_call, prediction, schedule
from tests.stock.tiny import STEPS, TinyPipeline


def test_all_layers_or_disabled_is_the_stock_pipeline_bit_for_bit(tiny: TinyPipeline):
    stock, depth = tiny(), depth_of(tiny)
    before, state = attributes(tiny.transformer), tiny.transformer.state_dict()
    for policy in (NeverExit(), ScheduleExit((depth,) * STEPS), CorrectedScheduleExit((depth,) * STEPS)):
        adadiff.enable(tiny.pipe, policy)
        assert torch.equal(tiny(), stock)
        assert adadiff.trace(tiny.pipe).layer_fraction == 1
        assert list(tiny.transformer.state_dict()) == list(state)
    adadiff.enable(tiny.pipe, schedule(tiny))
    assert not torch.equal(tiny(), stock)
    adadiff.disable(tiny.pipe)
    assert torch.equal(tiny(), stock)
    assert attributes(tiny.transformer) == before


def test_a_replay_is_the_model_cut_at_any_exit(tiny: TinyPipeline):
    inputs, model = first_call(tiny), tiny.transformer
    blocks = blocks_of(model)
    full, exits = prediction(model, inputs), range(1, blocks.depth)
    taps = blocks.tap(exits)
    assert equal(prediction(model, inputs), full)
    blocks.restore()
    for layer in exits:
        blocks.cut(layer)
        early = prediction(model, inputs)
        blocks.restore()
        with blocks.replayed(layer, taps):
            assert equal(prediction(model, inputs), early)
        assert not equal(early, full)
    assert equal(prediction(model, inputs), full)


def test_a_replay_runs_no_layer_and_no_refiner(tiny: TinyPipeline):
    inputs, model = first_call(tiny), tiny.transformer
    blocks = blocks_of(model)
    taps = blocks.tap((2,))
    prediction(model, inputs)
    names = [*blocks.family.layers, *blocks.family.refiners]
    ran = []
    handles = [
        block.register_forward_pre_hook(lambda module, args: ran.append(module))
        for group in names
        for name in group.split("+")
        for block in torch.nn.Module.get_submodule(model, name).children()
    ]
    with blocks.replayed(2, taps):
        prediction(model, inputs)
    for handle in handles:
        handle.remove()
    assert ran == []


def test_the_layers_of_the_schedule_run(tiny: TinyPipeline):
    policy = schedule(tiny)
    adadiff.enable(tiny.pipe, policy)
    tiny()
    trace = adadiff.trace(tiny.pipe)
    for layers in trace.exit_layers.values():
        assert layers == dict(enumerate(policy.layers))
    assert [call.corrected for call in trace.calls] == [call.layers < call.depth for call in trace.calls]
    assert trace.layer_fraction == pytest.approx(sum(policy.layers) / (STEPS * depth_of(tiny)))


def test_at_layer_0_no_layer_runs(tiny: TinyPipeline):
    depth = depth_of(tiny)
    adadiff.enable(tiny.pipe, CorrectedScheduleExit((depth, 0, depth, 0, depth, 0)))
    ran = []
    blocks = blocks_of(tiny.transformer)
    layers = [block for layer in range(1, depth + 1) for block in blocks.of_layer(layer)]
    handles = [block.register_forward_pre_hook(lambda module, args: ran.append(module)) for block in layers]
    sample = tiny()
    for handle in handles:
        handle.remove()
    assert sample.isfinite().all()
    calls = adadiff.trace(tiny.pipe).calls
    assert {call.layers for call in calls} == {0, depth}
    assert len(ran) == len(layers) * len(calls) // 2


def test_a_sampling_leaves_nothing_for_the_next(tiny: TinyPipeline):
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()
    tiny(seed=1, num_inference_steps=5)
    assert torch.equal(tiny(), first)
    block = next(block for name in tiny.transformer._modules for block in _blocks(tiny, name))
    for error in (KeyboardInterrupt, RuntimeError):
        calls = iter(range(4))

        def fail(*args: object, error: type[BaseException] = error, calls: object = calls) -> None:
            if next(calls, None) is None:
                raise error

        handle = block.register_forward_pre_hook(fail)
        with pytest.raises(error):
            tiny()
        handle.remove()
        assert torch.equal(tiny(), first)


def test_nothing_is_held_after_the_last_step(tiny: TinyPipeline, monkeypatch: pytest.MonkeyPatch):
    held: list[weakref.ref] = []
    measure, copied = Corrections.measure, views.copied

    def watched_measure(self: Corrections, *args: object) -> None:
        measure(self, *args)
        held.extend(weakref.ref(values) for values in self.memory._tensors.values())

    def watched_copied(output: object) -> object:
        copy = copied(output)
        held.extend(weakref.ref(leaf) for leaf in torch.utils._pytree.tree_leaves(copy) if leaf is not None)
        return copy

    monkeypatch.setattr(Corrections, "measure", watched_measure)
    monkeypatch.setattr(views, "copied", watched_copied)
    adadiff.enable(tiny.pipe, schedule(tiny))
    tiny()
    gc.collect()
    assert held
    assert [ref for ref in held if ref() is not None] == []


def test_at_most_four_predictions_are_held_for_each_exit(
    tiny: TinyPipeline, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    """Of the tensors that live between two steps, the bytes that were not there without early exits."""
    step, held = tiny.pipe.scheduler.step, list[int]()
    request.addfinalizer(gc.unfreeze)
    gc.freeze()  # looking at what was there before takes seconds

    def counted(*args: object, **kwargs: object) -> object:
        gc.collect()
        tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        held.append(
            sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())
        )
        return step(*args, **kwargs)

    monkeypatch.setattr(tiny.pipe.scheduler, "step", counted)
    tiny()
    stock = [*held]
    held.clear()
    adadiff.enable(tiny.pipe, schedule(tiny))
    tiny()
    values = sum(call.values for call in adadiff.trace(tiny.pipe).calls if call.step == 0)
    more = [ours - theirs for ours, theirs in zip(held, stock, strict=True)]
    assert max(more) >= 4 * values  # bytes: the first correction at least is held
    assert max(more) <= 4 * 4 * values


def _blocks(tiny: TinyPipeline, name: str) -> list[torch.nn.Module]:
    layers = blocks_of(tiny.transformer).layers
    return [tiny.transformer._modules[name][place] for places in layers for each, place in places if each == name]

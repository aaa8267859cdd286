"""The costs of calls, counted on a real one, compared with the FLOPs that samplings spend."""

from __future__ import annotations

import pytest
from torch.utils.flop_counter import FlopCounterMode

import adadiff
from adadiff import CorrectedScheduleExit, InputError, NeverExit
from adadiff.stock.costs import LayerCosts, mean_costs
from adadiff.stock.recorder import ExitRecorder
from adadiff.stock.switch import recording, switch_on
from tests.stock.calls import depth_of, schedule
from tests.stock.tiny import TinyPipeline, build


def counted_flops(tiny: TinyPipeline) -> int:
    """FLOPs of the transformer's calls in one sampling."""
    counter, spent = FlopCounterMode(display=False), []
    before = tiny.transformer.register_forward_pre_hook(lambda *_: spent.append(-counter.get_total_flops()))
    after = tiny.transformer.register_forward_hook(lambda *_: spent.append(counter.get_total_flops()))
    with counter:
        tiny()
    before.remove()
    after.remove()
    return sum(spent)


def test_the_compute_fraction_is_that_of_the_flops_counted(tiny: TinyPipeline):
    recorder = ExitRecorder((1, 2), window=3, samples=2)
    with recording(tiny.pipe, recorder):
        tiny()
    costs = recorder.costs_by_transformer()
    depth = depth_of(tiny)
    switch_on(tiny.pipe, NeverExit(), costs=costs)
    full = counted_flops(tiny)
    assert adadiff.trace(tiny.pipe).compute_fraction == pytest.approx(1)
    for policy in (schedule(tiny), CorrectedScheduleExit((depth, 0, depth, 1, 2, 0))):
        switch_on(tiny.pipe, policy, costs=costs)
        assert counted_flops(tiny) / full == pytest.approx(adadiff.trace(tiny.pipe).compute_fraction, rel=0.02)


def test_without_costs_the_compute_fraction_is_not_known():
    tiny = build("pixart")
    adadiff.enable(tiny.pipe, schedule(tiny))
    tiny()
    with pytest.raises(InputError, match="FLOPs of the layers are not known"):
        _ = adadiff.trace(tiny.pipe).compute_fraction


def test_costs_are_averaged_part_by_part():
    one, other = LayerCosts(0.0, 0.2, (0.5, 0.3)), LayerCosts(0.2, 0.2, (0.3, 0.3))
    mean = mean_costs([one, other])
    assert (mean.refiners, mean.head) == pytest.approx((0.1, 0.2))
    assert mean.layers == pytest.approx((0.4, 0.3))
    assert mean.of(0) == pytest.approx(0.3)
    assert mean.of(2, read_off=2) == pytest.approx(1.4)

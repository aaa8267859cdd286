"""Calls of a transformer with fitted exits, where rows exit by themselves: guidance, ControlNets, and calls cut off."""

from __future__ import annotations

import pytest
import torch

import adadiff
from adadiff.stock import FittedExits
from tests.stock.calls import blocks_of, depth_of, first_call
from tests.stock.test_adapt import adapted, middle_threshold
from tests.stock.tiny import STEPS, build


@pytest.mark.parametrize("skipped", [[0], [2], [1, 2, 3]], ids=str)
def test_calls_with_skip_layer_guidance_have_all_layers_where_an_exit_is_skipped(skipped: list[int]):
    tiny = build("sd3")
    skipping = {"skip_guidance_layers": skipped, "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    adaptation = adapted(tiny)
    stock, plain = tiny(**skipping), tiny()
    assert not torch.equal(stock, plain)
    adadiff.enable(tiny.pipe, adadiff.ThresholdExit(1e-9), adaptation=adaptation)  # nobody exits
    torch.testing.assert_close(tiny(**skipping), stock, rtol=1e-4, atol=1e-5)
    adadiff.disable(tiny.pipe)


def test_exits_that_skip_layer_guidance_leaves_out_are_fitted_by_the_other_calls():
    tiny = build("sd3")
    skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    for exits in adapted(tiny, exits=[1, 2, 3], **skipping).transformers.values():
        assert (exits.errors[..., 1] < exits.errors[..., 0]).all()


@pytest.mark.parametrize("residuals", [3, 4])
def test_residuals_of_a_controlnet_are_cut_by_rows_however_many_there_are(
    residuals: int, monkeypatch: pytest.MonkeyPatch
):
    """As many residuals as rows are no rows."""
    tiny = build("sd3")
    adaptation = adapted(tiny)
    args, kwargs = first_call(tiny)
    rows = len(kwargs["hidden_states"])
    assert rows == 4
    each = [torch.randn(rows, 16, 16, generator=torch.Generator().manual_seed(k)) for k in range(residuals)]
    tiny.pipe.scheduler.set_timesteps(STEPS)
    kwargs |= {"block_controlnet_hidden_states": each, "timestep": tiny.pipe.scheduler.timesteps[0].expand(rows)}
    with torch.no_grad():
        full = tiny.transformer(*args, **kwargs)[0]
        first = torch.tensor([0.9, 0.1, 0.9, 0.1])
        monkeypatch.setattr(
            FittedExits, "uncertainty", lambda self, layer, time, tokens: first if layer == 1 else torch.ones(2)
        )
        adadiff.enable(tiny.pipe, adadiff.ThresholdExit(0.5), adaptation=adaptation)
        some = tiny.transformer(*args, **kwargs)[0]
    assert adadiff.trace(tiny.pipe).calls[-1].row_layers == (5, 1, 5, 1)
    adadiff.disable(tiny.pipe)
    torch.testing.assert_close(some[::2], full[::2], rtol=1e-4, atol=1e-5)


def test_weights_are_whole_after_a_call_that_was_cut_off():
    tiny = build("pixart")
    adaptation = adapted(tiny)
    stock, full = tiny.transformer.state_dict(), tiny()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    adadiff.enable(tiny.pipe, adadiff.ThresholdExit(1e-9), adaptation=adaptation)
    handle = tiny.transformer.transformer_blocks[0].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        tiny()
    handle.remove()
    left = tiny.transformer.state_dict()
    assert list(left) == list(stock)
    assert all(torch.equal(left[name], stock[name]) for name in stock)
    tiny.transformer.double().float()
    torch.testing.assert_close(tiny(), full, rtol=1e-4, atol=1e-5)
    adadiff.disable(tiny.pipe)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_call_that_is_cut_off_leaves_no_trace(error: type[BaseException], monkeypatch: pytest.MonkeyPatch):
    tiny = build("dit")
    adaptation = adapted(tiny)
    full = tiny()
    tau = middle_threshold(tiny, adaptation, monkeypatch)
    adadiff.enable(tiny.pipe, adadiff.ThresholdExit(tau), adaptation=adaptation)
    expected = tiny()

    def fail(*_: object) -> None:
        raise error

    handle = blocks_of(tiny.transformer).of_layer(depth_of(tiny))[0].register_forward_pre_hook(fail)
    with pytest.raises(error):
        tiny()
    handle.remove()
    assert torch.equal(tiny(), expected)
    adadiff.disable(tiny.pipe)
    assert torch.equal(tiny(), full)

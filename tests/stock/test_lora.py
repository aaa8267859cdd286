"""LoRA adapters that are loaded, fused and unloaded while adaptive depth is enabled."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import adadiff
from adadiff import NeverExit
from adadiff.stock.stored import StockPolicy, stock_context
from adadiff.stock.switch import transformers_of
from tests.stock.calls import depth_of, schedule
from tests.stock.tiny import STEPS, TinyPipeline, build

peft = pytest.importorskip("peft", reason="LoRA needs peft")

FAMILIES = ("sd3", "flux")
WEIGHTS = "pytorch_lora_weights.safetensors"  # must be named where the Hub is switched off


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def style(family: str, tmp_path: Path) -> Path:
    """A folder with the weights of a LoRA for the family."""
    tiny = build(family)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False)
    tiny.transformer.add_adapter(config, "style")
    weights = peft.get_peft_model_state_dict(tiny.transformer, adapter_name="style")
    tiny.pipe.save_lora_weights(tmp_path, transformer_lora_layers=weights)
    return tmp_path


def stored(tiny: TinyPipeline) -> StockPolicy:
    """A schedule calibrated for the pipeline as it is now."""
    arguments = {"num_inference_steps": STEPS, "guidance_scale": tiny.arguments["guidance_scale"]}
    shape = tuple(tiny().shape[1:])
    context = stock_context(tiny.pipe, transformers_of(tiny.pipe), depth_of(tiny), STEPS, arguments, [shape], {})
    return StockPolicy(schedule(tiny), context, {}, {})


def test_full_schedules_are_stock_while_adapters_come_and_go(family: str, style: Path):
    stock, enabled = build(family), build(family)
    adadiff.enable(enabled.pipe, NeverExit())
    images = [stock()]
    for change in (
        lambda pipe: pipe.load_lora_weights(style, weight_name=WEIGHTS, adapter_name="style"),
        lambda pipe: pipe.fuse_lora(),
        lambda pipe: pipe.unfuse_lora(),
        lambda pipe: pipe.unload_lora_weights(),
    ):
        change(stock.pipe)
        change(enabled.pipe)
        images.append(stock())
        assert torch.equal(enabled(), images[-1])
    assert not torch.allclose(images[1], images[0], atol=1e-3)
    torch.testing.assert_close(images[-1], images[0], atol=1e-4, rtol=0)  # fused weights are rounded


def test_corrected_schedules_follow_the_adapters(family: str, style: Path):
    before, after = build(family), build(family)
    policy = schedule(before)
    before.pipe.load_lora_weights(style, weight_name=WEIGHTS, adapter_name="style")
    full = before()
    adadiff.enable(before.pipe, policy)
    adadiff.enable(after.pipe, policy)
    without = after()
    after.pipe.load_lora_weights(style, weight_name=WEIGHTS, adapter_name="style")
    latents = after()
    assert torch.equal(latents, before())
    assert not torch.equal(latents, full)
    trace = adadiff.trace(after.pipe)
    assert all(layers == dict(enumerate(policy.layers)) for layers in trace.exit_layers.values())
    after.pipe.fuse_lora()
    torch.testing.assert_close(after(), latents, atol=1e-4, rtol=0)
    after.pipe.unfuse_lora()
    after.pipe.disable_lora()
    torch.testing.assert_close(after(), without, atol=1e-4, rtol=0)
    after.pipe.unload_lora_weights()
    torch.testing.assert_close(after(), without, atol=1e-4, rtol=0)
    adadiff.disable(after.pipe)
    adadiff.disable(before.pipe)
    assert torch.equal(before(), full)


def warnings_of(tiny: TinyPipeline, policy: StockPolicy, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is warned of when the pipeline is enabled and called twice."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "adadiff"):
        adadiff.enable(tiny.pipe, policy)
        tiny()
        tiny()
    adadiff.disable(tiny.pipe)
    return [message for message in caplog.messages if "adapters" in message or "weights" in message]


def test_a_stored_policy_warns_that_adapters_differ(family: str, style: Path, caplog: pytest.LogCaptureFixture):
    tiny = build(family)
    plain = stored(tiny)
    tiny.pipe.load_lora_weights(style, weight_name=WEIGHTS, adapter_name="style")
    styled = stored(tiny)
    other_calls = "the policy was calibrated for other calls: adapters"
    assert warnings_of(tiny, plain, caplog) == [f"{other_calls} style in place of none"]
    assert warnings_of(tiny, styled, caplog) == []
    tiny.pipe.disable_lora()
    assert warnings_of(tiny, plain, caplog) == []
    assert warnings_of(tiny, styled, caplog) == [f"{other_calls} none in place of style"]
    tiny.pipe.unload_lora_weights()
    assert warnings_of(tiny, plain, caplog) == []
    assert warnings_of(tiny, styled, caplog) == [f"{other_calls} none in place of style"]


def test_adapters_that_come_while_a_stored_policy_is_enabled_are_warned_of(
    family: str, style: Path, caplog: pytest.LogCaptureFixture
):
    tiny = build(family)
    adadiff.enable(tiny.pipe, stored(tiny))
    tiny()
    tiny.pipe.load_lora_weights(style, weight_name=WEIGHTS, adapter_name="style")
    with caplog.at_level(logging.WARNING, "adadiff"):
        tiny()
    assert any("adapters style in place of none" in message for message in caplog.messages)

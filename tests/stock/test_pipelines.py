"""Arrangements of pipelines: guidance of several kinds, several transformers, ControlNets, changing sizes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import adadiff
from adadiff import CorrectedScheduleExit, InputError, NeverExit, ScheduleExit
from tests.stock.calls import attributes, blocks_of, depth_of, equal, first_call, prediction, schedule
from tests.stock.tiny import TinyPipeline, build, noise, prompts, sd3_img2img, wan


def sampled(tiny: TinyPipeline, policy: adadiff.ExitPolicy, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Latents of the stock pipeline and under the policy, which two samplings agree on; it stays enabled."""
    adadiff.disable(tiny.pipe)
    stock = tiny(**arguments)
    adadiff.enable(tiny.pipe, NeverExit())
    assert torch.equal(tiny(**arguments), stock)
    adadiff.enable(tiny.pipe, policy)
    first = tiny(**arguments)
    assert torch.equal(tiny(**arguments), first)
    assert not torch.equal(first, stock)
    return stock, first


def layers_run(tiny: TinyPipeline) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Steps and layers run, by transformer and kind of call."""
    return {kind: list(layers.items()) for kind, layers in adadiff.trace(tiny.pipe).exit_layers.items()}


def test_two_transformers_share_a_schedule():
    tiny = build(wan, transformers=2)
    depth = depth_of(tiny)
    sampled(tiny, CorrectedScheduleExit((depth, 1, depth, 1, 1, 1)))
    for kind in ("cond", "uncond"):
        assert layers_run(tiny)["transformer", kind] == [(0, depth), (1, 1), (2, depth)]
        # the second begins with all layers, since nothing was measured of it
        assert layers_run(tiny)["transformer_2", kind] == [(3, depth), (4, 1), (5, 1)]


def test_skip_layer_guidance_runs_all_layers_where_the_exit_is_skipped():
    tiny = build("sd3")
    depth, policy = depth_of(tiny), schedule(tiny, layer=3)
    skipping = {"skip_layer_guidance_scale": 2.8, "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    sampled(tiny, policy, skip_guidance_layers=[2], **skipping)
    assert dict(layers_run(tiny)["transformer", "call 1"]) == dict.fromkeys(range(1, 6), depth)
    sampled(tiny, policy, skip_guidance_layers=[1], **skipping)
    assert dict(layers_run(tiny)["transformer", "call 1"]) == {1: depth, 2: 3, 3: depth, 4: 3, 5: 3}
    assert dict(layers_run(tiny)["transformer", "call 0"]) == dict(enumerate(policy.layers))


def test_guidance_that_ends_leaves_the_rest_as_it_is():
    tiny = build("lumina2")
    policy = schedule(tiny)
    sampled(tiny, policy, cfg_trunc_ratio=0.5)
    assert layers_run(tiny)["transformer", "call 0"] == list(enumerate(policy.layers))
    ends = len(layers_run(tiny)["transformer", "call 1"])
    assert layers_run(tiny)["transformer", "call 1"] == list(enumerate(policy.layers))[:ends]
    assert 0 < ends < 6
    trajectory = tiny.transformer._adadiff.state.trajectory
    assert trajectory.corrections == {}


def test_a_sampling_that_begins_later_begins_with_all_layers():
    tiny = build(sd3_img2img)
    depth = depth_of(tiny)
    sampled(tiny, schedule(tiny, steps=10))
    assert layers_run(tiny)["transformer", "call 0"] == [(4, depth), (5, 2), (6, depth), (7, 2), (8, 2), (9, depth)]


def test_batches_sizes_and_steps_may_change_from_call_to_call():
    tiny = build("pixart")
    adadiff.enable(tiny.pipe, schedule(tiny))
    settings: list[dict[str, Any]] = [{}, {"num_images_per_prompt": 2}, {"height": 96}, {"num_inference_steps": 9}]
    fresh = []
    for arguments in settings:
        adadiff.enable(tiny.pipe, schedule(tiny))
        fresh.append(tiny(**arguments))
    for arguments, wanted in [*zip(settings, fresh, strict=True)] * 2:
        assert torch.equal(tiny(**arguments), wanted)


def test_a_sample_does_not_depend_on_its_neighbours():
    tiny = build("pixart")
    adadiff.enable(tiny.pipe, schedule(tiny))
    latents = noise(2, 4, 8, 8, seed=9)
    together = tiny(latents=latents)
    kept = {name: values[:1] for name, values in tiny.arguments.items() if isinstance(values, Tensor)}
    torch.testing.assert_close(tiny(latents=latents[:1], **kept), together[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "residuals"),
    [
        ("sd3", {"block_controlnet_hidden_states": (4, 16, 16)}),
        ("flux", {"controlnet_block_samples": (2, 16, 32), "controlnet_single_block_samples": (2, 16, 32)}),
        ("qwen", {"controlnet_block_samples": (2, 16, 32)}),
        ("chroma", {"controlnet_block_samples": (2, 16, 32), "controlnet_single_block_samples": (2, 16, 32)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_replays_add_the_residuals_of_a_controlnet(name: str, residuals: dict[str, tuple[int, ...]]):
    tiny = build(name)
    if missing := set(residuals) - set(inspect.signature(type(tiny.transformer).forward).parameters):
        pytest.skip(f"this diffusers gives {name} no {', '.join(sorted(missing))}")
    args, kwargs = first_call(tiny)
    kwargs |= {each: [noise(*shape, seed=k) for k in (8, 9)] for each, shape in residuals.items()}
    plain, model = prediction(tiny.transformer, first_call(tiny)), tiny.transformer
    blocks = blocks_of(model)
    taps = blocks.tap(range(1, blocks.depth))
    assert not equal(prediction(model, (args, kwargs)), plain)
    for layer in range(1, blocks.depth):
        blocks.cut(layer)
        early = prediction(model, (args, kwargs))
        blocks.restore()
        with blocks.replayed(layer, taps):
            assert equal(prediction(model, (args, kwargs)), early)


def test_arguments_that_the_model_takes_items_out_of_are_whole_in_a_replay():
    tiny = build("flux")
    model, (args, kwargs) = tiny.transformer, first_call(tiny)
    forward, given = model.forward, []

    def popping(*args: Any, joint_attention_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        given.append(joint_attention_kwargs.pop("extra", None))
        return forward(*args, joint_attention_kwargs=joint_attention_kwargs, **kwargs)

    adadiff.enable(tiny.pipe, schedule(tiny))
    wrapped = model.forward
    forward, model.forward = wrapped, popping
    tiny.pipe.scheduler.set_timesteps(6, mu=0.5)
    with torch.no_grad():
        model(*args, **{**kwargs, "joint_attention_kwargs": {"extra": 1}})
    assert given == [1, 1]  # the call and its replay
    model.forward = wrapped


def test_the_controlnet_of_hunyuandit_is_refused():
    tiny = build("hunyuandit")
    inputs = first_call(tiny)
    adadiff.enable(tiny.pipe, schedule(tiny))
    with pytest.raises(InputError, match="controlnet_block_samples cannot be given"), torch.no_grad():
        tiny.transformer(*inputs[0], **{**inputs[1], "controlnet_block_samples": [noise(1)]})


def test_weights_are_saved_and_loaded_as_before(tmp_path: Path):
    tiny = build("sd3")
    tiny.transformer.save_pretrained(tmp_path / "before")
    adadiff.enable(tiny.pipe, schedule(tiny))
    tiny()
    tiny.transformer.save_pretrained(tmp_path / "enabled")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "enabled" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_calls_with_gradients_are_left_alone():
    tiny = build("pixart")
    args, kwargs = first_call(tiny)
    stock = tiny.transformer(*args, **kwargs)[0]
    adadiff.enable(tiny.pipe, ScheduleExit((1,) * 6))
    tiny.transformer.train()
    with torch.enable_grad():
        output = tiny.transformer(*args, **kwargs)[0]
    assert torch.equal(output, stock)
    output.sum().backward()
    assert tiny.transformer.transformer_blocks[-1].attn1.to_q.weight.grad is not None
    assert adadiff.trace(tiny.pipe).calls == ()


def test_a_model_in_training_mode_is_refused():
    tiny = build("dit")
    adadiff.enable(tiny.pipe, schedule(tiny))
    tiny.transformer.train()
    with pytest.raises(InputError, match=r"training mode: call pipe.transformer.eval\(\)"):
        tiny()


def test_a_model_that_nothing_was_called_on_is_left_as_it_was():
    for name in ("sd3", "flux"):
        tiny = build(name)
        before = attributes(tiny.transformer)
        adadiff.enable(tiny.pipe, schedule(tiny))
        adadiff.disable(tiny.pipe)
        assert attributes(tiny.transformer) == before


def test_prompts_of_other_lengths_are_new_samplings():
    tiny = build("pixart")
    adadiff.enable(tiny.pipe, schedule(tiny))
    first = tiny()
    mask = torch.ones(2, 5)
    words = {**prompts(24, tokens=5), "prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    assert not torch.equal(tiny(**words), first)
    assert torch.equal(tiny(), first)


def test_half_precision_stays_half_precision():
    tiny = build("sd3")
    tiny.pipe.to(torch.bfloat16)
    tiny.arguments = {
        name: value.bfloat16() if isinstance(value, Tensor) else value for name, value in tiny.arguments.items()
    }
    stock, latents = sampled(tiny, schedule(tiny))
    assert latents.dtype == torch.bfloat16
    torch.testing.assert_close(latents, stock, rtol=0.2, atol=0.2)

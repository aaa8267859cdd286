"""IP-Adapters on SD3 and Flux, whose transformers take the images' embeddings out of the dictionary they are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, IPAdapterTimeImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers import transformer_flux
from torch import nn

import adadiff
from adadiff import NeverExit
from tests.stock.calls import blocks_of, equal, first_call, prediction, schedule
from tests.stock.tiny import TinyPipeline, build, noise

WIDTH = 24  # of an image's embedding


def sd3() -> TinyPipeline:
    """SD3 with an IP-Adapter in every block."""
    tiny = build("sd3")
    model = tiny.transformer
    sizes = {"ip_hidden_states_dim": 32, "head_dim": 8, "timesteps_emb_dim": 64}
    model.set_attn_processor({name: SD3IPAdapterJointAttnProcessor2_0(16, **sizes) for name in model.attn_processors})
    sizes = {"output_dim": 32, "hidden_dim": 64, "depth": 1, "heads": 1, "num_queries": 4}
    model.image_proj = IPAdapterTimeImageProjection(WIDTH, timestep_in_dim=32, **sizes)
    return with_images(tiny, noise(2, 5, WIDTH, seed=6))  # of the negative image, then of the other, for all samples


def flux() -> TinyPipeline:
    """Flux with an IP-Adapter in the blocks of two streams, as its checkpoints have."""
    tiny = build("flux")
    model = tiny.transformer
    kind = getattr(transformer_flux, "FluxIPAdapterAttnProcessor", None)
    if kind is None:
        pytest.skip("this diffusers has another IP-Adapter for Flux")
    adapted = {
        name: each if name.startswith("single") else kind(32, 32, num_tokens=(4,))
        for name, each in model.attn_processors.items()
    }
    model.set_attn_processor(adapted)
    model.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(WIDTH, 32, num_image_text_embeds=4)])
    return with_images(tiny, [noise(2, 1, WIDTH, seed=6)], [noise(2, 1, WIDTH, seed=7)])


def with_images(tiny: TinyPipeline, images: Any, negative_images: Any = None) -> TinyPipeline:
    """Give the embeddings of images to every call."""
    more = {} if negative_images is None else {"negative_ip_adapter_image_embeds": negative_images}
    arguments = {**tiny.arguments, "ip_adapter_image_embeds": images, **more}
    return TinyPipeline(tiny.pipe, arguments)


@pytest.fixture(params=[sd3, flux], ids=lambda builder: builder.__name__)
def tiny(request: pytest.FixtureRequest) -> TinyPipeline:
    pipeline: TinyPipeline = request.param()
    return pipeline


def other_images(tiny: TinyPipeline) -> dict[str, Any]:
    """The arguments of a call with other images."""
    images = tiny.arguments["ip_adapter_image_embeds"]
    return {"ip_adapter_image_embeds": [-each for each in images] if isinstance(images, list) else -images}


def test_a_full_schedule_is_stock(tiny: TinyPipeline):
    stock = tiny()
    assert not torch.allclose(tiny(**other_images(tiny)), stock, atol=1e-4)  # the images count
    adadiff.enable(tiny.pipe, NeverExit())
    assert torch.equal(tiny(), stock)
    adadiff.disable(tiny.pipe)
    assert torch.equal(tiny(), stock)


def test_a_corrected_schedule_runs(tiny: TinyPipeline):
    stock, policy = tiny(), schedule(tiny)
    adadiff.enable(tiny.pipe, policy)
    latents = tiny()
    assert torch.equal(tiny(), latents)
    assert not torch.equal(latents, stock)
    assert not torch.allclose(tiny(**other_images(tiny)), latents, atol=1e-4)
    for layers in adadiff.trace(tiny.pipe).exit_layers.values():
        assert layers == dict(enumerate(policy.layers))


def test_replays_are_given_the_images(tiny: TinyPipeline):
    model: nn.Module = tiny.transformer
    blocks, (args, kwargs) = blocks_of(model), first_call(tiny)
    assert kwargs["joint_attention_kwargs"]["ip_adapter_image_embeds"] is not None
    for layer in (1, blocks.depth - 1):
        blocks.cut(layer)
        early = prediction(model, (args, kwargs))
        blocks.restore()
        taps = blocks.tap([layer])
        prediction(model, (args, kwargs))
        blocks.restore()
        with blocks.replayed(layer, taps):
            assert equal(prediction(model, (args, kwargs)), early)


def test_each_call_and_each_replay_reads_the_images(tiny: TinyPipeline):
    model, policy, read = tiny.transformer, schedule(tiny), []
    projection = getattr(model, "image_proj", None) or model.encoder_hid_proj
    adadiff.enable(tiny.pipe, policy)
    handle = projection.register_forward_hook(lambda *_: read.append(1))
    tiny()
    handle.remove()
    replays = policy.layers.count(blocks_of(model).depth)  # at each full step, of the early exit's layer
    kinds = len(adadiff.trace(tiny.pipe).exit_layers)
    assert len(read) == kinds * (len(policy.layers) + replays)

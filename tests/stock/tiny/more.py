"""Further tiny random pipelines, of images and of videos."""

from __future__ import annotations

import diffusers

from tests.stock.tiny.parts import TinyPipeline, flow_matching, image, masks, pooled, prompts, video, without

PARTS = ("tokenizer", "text_encoder", "vae")


def cogview4() -> TinyPipeline:
    """Prompt and image in one stream; guidance in two named calls."""
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
    )
    scheduler = flow_matching(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75)
    pipe = diffusers.CogView4Pipeline(transformer=transformer, scheduler=scheduler, **without(*PARTS))
    return TinyPipeline(pipe, image(64, **prompts(32, tokens=16)))


def cogview3plus() -> TinyPipeline:
    """Guidance in one call."""
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=2,
        pos_embed_max_size=8,
        sample_size=8,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler()
    pipe = diffusers.CogView3PlusPipeline(transformer=transformer, scheduler=scheduler, **without(*PARTS))
    return TinyPipeline(pipe, image(64, **prompts(32)))


def hunyuanvideo() -> TinyPipeline:
    """Double-stream blocks, then single-stream ones; guidance is an input, another one makes two named calls."""
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=3,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    parts = without(*PARTS, "tokenizer_2", "text_encoder_2")
    pipe = diffusers.HunyuanVideoPipeline(transformer=transformer, scheduler=flow_matching(), **parts)
    guided = {"true_cfg_scale": 3.0, **prompts(32), **pooled(16), **masks()}
    return TinyPipeline(pipe, video(32, **guided))


def mochi() -> TinyPipeline:
    """Prompt and video attend to each other; the last block leaves the prompt."""
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=4,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=32,
        time_embed_dim=4,
        activation_fn="swiglu",
    )
    pipe = diffusers.MochiPipeline(transformer=transformer, scheduler=flow_matching(), **without(*PARTS))
    return TinyPipeline(pipe, video(32, num_frames=7, **prompts(32), **masks()))


def allegro() -> TinyPipeline:
    """Cross-attention to the prompt; rotary positions in three dimensions."""
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=32,
    )
    scheduler = diffusers.DDIMScheduler()
    pipe = diffusers.AllegroPipeline(transformer=transformer, scheduler=scheduler, **without(*PARTS))
    return TinyPipeline(pipe, video(64, num_frames=8, prompt=None, negative_prompt=None, **prompts(32), **masks()))

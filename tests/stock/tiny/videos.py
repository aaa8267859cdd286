"""Tiny random pipelines that sample the latents of videos."""

from __future__ import annotations

import diffusers

from tests.stock.tiny.parts import TinyPipeline, autoencoder, flow_matching, image, masks, prompts, video, without


def wan(transformers: int = 1) -> TinyPipeline:
    """Guidance in two named calls; with two transformers, the second takes over at low noise."""
    made = [
        diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=4,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        )
        for _ in range(transformers)
    ]
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    second = {"transformer_2": made[1], "boundary_ratio": 0.8} if transformers == 2 else {}
    parts = without("tokenizer", "text_encoder", "vae")
    pipe = diffusers.WanPipeline(transformer=made[0], scheduler=scheduler, **parts, **second)
    return TinyPipeline(pipe, video(**prompts(32)))


def cogvideox() -> TinyPipeline:
    """Guidance in one named call."""
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=4,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
    )
    parts = without("tokenizer", "text_encoder", "vae")
    scheduler = diffusers.CogVideoXDPMScheduler()
    pipe = diffusers.CogVideoXPipeline(transformer=transformer, scheduler=scheduler, **parts)
    return TinyPipeline(pipe, video(**prompts(32, tokens=16)))


def ltx() -> TinyPipeline:
    """Guidance in one named call."""
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=4,
        caption_channels=16,
    )
    parts = without("vae", "text_encoder", "tokenizer")
    scheduler = flow_matching(use_dynamic_shifting=True)
    pipe = diffusers.LTXPipeline(transformer=transformer, scheduler=scheduler, **parts)
    return TinyPipeline(pipe, video(**prompts(16), **masks()))


def latte() -> TinyPipeline:
    """Layers of two blocks, of space and of time; guidance in one call."""
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=2,
    )
    parts = without("tokenizer", "text_encoder")
    scheduler = diffusers.DDIMScheduler()
    pipe = diffusers.LattePipeline(transformer=transformer, vae=autoencoder(4), scheduler=scheduler, **parts)
    arguments = image(**prompts(32), negative_prompt=None, video_length=2, output_type="latents")
    return TinyPipeline(pipe, arguments)

"""Tiny random pipelines that sample the latents of images."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.stock.tiny.parts import (
    STEPS,
    TEXT,
    TinyPipeline,
    autoencoder,
    flow_matching,
    image,
    masks,
    noise,
    pooled,
    prompts,
    without,
)


def dit(scheduler: Any = None) -> TinyPipeline:
    """Class-conditional; guidance in one call; predicts a variance, too."""
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        sample_size=8,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
    )
    scheduler = scheduler or diffusers.DDIMScheduler()
    pipe = diffusers.DiTPipeline(transformer=transformer, vae=autoencoder(2), scheduler=scheduler)
    arguments = {"class_labels": [1, 2], "num_inference_steps": STEPS, "guidance_scale": 2.0, "output_type": "np"}
    return TinyPipeline(pipe, arguments)


def pixart(scheduler: Any = None) -> TinyPipeline:
    """Cross-attention to the prompt; guidance in one call."""
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=5,
        sample_size=8,
        cross_attention_dim=32,
        caption_channels=24,
        use_additional_conditions=False,
    )
    scheduler = scheduler or diffusers.DPMSolverMultistepScheduler()
    parts = without("tokenizer", "text_encoder", "vae")
    pipe = diffusers.PixArtAlphaPipeline(transformer=transformer, scheduler=scheduler, **parts)
    more = {"prompt": None, "negative_prompt": None, "use_resolution_binning": False}
    return TinyPipeline(pipe, image(**prompts(24), **masks(), **more))


def sd3_parts() -> dict[str, Any]:
    """The parts of Stable Diffusion 3."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )
    left_out = without("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    return {"transformer": transformer, "scheduler": flow_matching(), "vae": None, **left_out}


def sd3() -> TinyPipeline:
    """Two streams of tokens in every block; guidance in one call."""
    pipe = diffusers.StableDiffusion3Pipeline(**sd3_parts())
    return TinyPipeline(pipe, image(**prompts(32), **pooled(16)))


def sd3_img2img() -> TinyPipeline:
    """Stable Diffusion 3 that begins within the time steps, with an image."""
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**{**sd3_parts(), "vae": autoencoder(4)})
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    return TinyPipeline(pipe, image(**prompts(32), **pooled(16), image=pictures, strength=0.6, num_inference_steps=10))


def flux(double: int = 2, single: int = 3) -> TinyPipeline:
    """Blocks of two streams, then of one; guidance in two named calls."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    parts = without("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    scheduler = flow_matching(use_dynamic_shifting=True)
    pipe = diffusers.FluxPipeline(transformer=transformer, scheduler=scheduler, **parts)
    return TinyPipeline(pipe, image(**prompts(32), **pooled(16), true_cfg_scale=2.0))


def sana() -> TinyPipeline:
    """Linear attention; guidance in one call."""
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=5,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
        sample_size=32,
    )
    parts = without("tokenizer", "text_encoder", "vae")
    pipe = diffusers.SanaPipeline(transformer=transformer, scheduler=flow_matching(shift=3.0), **parts)
    more = {"negative_prompt": None, "use_resolution_binning": False}
    return TinyPipeline(pipe, image(256, **prompts(8), **masks(), **more))


def lumina2() -> TinyPipeline:
    """Refiners before the layers; guidance in two unnamed calls, which may end before the sampling does."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=4,
        num_refiner_layers=2,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        scaling_factor=1.0,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 128, 128),
        cap_feat_dim=8,
    )
    pipe = diffusers.Lumina2Pipeline.__new__(diffusers.Lumina2Pipeline)  # its own asks for a tokenizer of transformers
    diffusers.DiffusionPipeline.__init__(pipe)
    pipe.register_modules(
        transformer=transformer, scheduler=flow_matching(), **without("vae", "text_encoder", "tokenizer")
    )
    pipe.vae_scale_factor, pipe.default_sample_size, pipe.system_prompt = 8, 128, ""
    pipe.image_processor = diffusers.image_processor.VaeImageProcessor(vae_scale_factor=16)
    return TinyPipeline(pipe, image(**prompts(8), **masks(dtype=torch.long), cfg_trunc_ratio=1.0))


def auraflow() -> TinyPipeline:
    """Two lists of blocks of unusual names; guidance in one call."""
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    parts = without("tokenizer", "text_encoder", "vae")
    pipe = diffusers.AuraFlowPipeline(transformer=transformer, scheduler=flow_matching(), **parts)
    return TinyPipeline(pipe, image(**prompts(32), **masks()))


def qwen() -> TinyPipeline:
    """Two streams; guidance in two named calls."""
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    scheduler = flow_matching(use_dynamic_shifting=True)
    parts = without("vae", "text_encoder", "tokenizer")
    pipe = diffusers.QwenImagePipeline(transformer=transformer, scheduler=scheduler, **parts)
    arguments = image(**prompts(16), **masks(name="prompt_embeds_mask", dtype=torch.long), true_cfg_scale=2.0)
    return TinyPipeline(pipe, {**arguments, "guidance_scale": None})


def hunyuandit(scheduler: Any = None) -> TinyPipeline:
    """Long skips from the first half of the blocks to the second; guidance in one call."""
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=8,
        num_layers=6,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        hidden_size=16,
        activation_fn="gelu-approximate",
        text_len=TEXT,
        text_len_t5=9,
    )
    parts = without("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "text_encoder_2", "tokenizer_2")
    pipe = diffusers.HunyuanDiTPipeline(
        transformer=transformer,
        vae=autoencoder(4),
        scheduler=scheduler or diffusers.DDPMScheduler(),
        requires_safety_checker=False,
        **parts,
    )
    words = {**prompts(32), **prompts(32, tokens=9, suffix="_2")}
    kept = {**masks(dtype=torch.long), **masks(9, "prompt_attention_mask_2", torch.long)}
    return TinyPipeline(pipe, image(128, **words, **kept, use_resolution_binning=False))


def zimage() -> TinyPipeline:
    """Refiners before the layers; lists of tensors in and out; guidance in one call."""
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=4,
        n_refiner_layers=2,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    scheduler = flow_matching(use_dynamic_shifting=True)
    parts = without("vae", "text_encoder", "tokenizer")
    pipe = diffusers.ZImagePipeline(transformer=transformer, scheduler=scheduler, **parts)
    words = {
        "prompt_embeds": [noise(7, 16), noise(9, 16, seed=3)],
        "negative_prompt_embeds": [noise(7, 16, seed=2), noise(5, 16, seed=4)],
    }
    return TinyPipeline(pipe, image(**words))


def chroma() -> TinyPipeline:
    """Modulation by the number of the block; guidance in two calls."""
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    scheduler = flow_matching(use_dynamic_shifting=True)
    parts = without("vae", "text_encoder", "tokenizer")
    pipe = diffusers.ChromaPipeline(transformer=transformer, scheduler=scheduler, **parts)
    return TinyPipeline(pipe, image(**prompts(32), **masks()))

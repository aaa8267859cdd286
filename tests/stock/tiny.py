"""Tiny random pipelines, one of each family of stock transformers, that sample latents within a second on one core.

Every builder returns a pipeline without text encoders: the embeddings of prompts are random, and so are the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn

STEPS = 6
TEXT = 7  # tokens of a prompt


@dataclass
class TinyPipeline:
    """A pipeline with the arguments of a call.

    Args:
        pipe: The pipeline; two samples per call.
        arguments: Arguments of a call, which those of `__call__` override.
    """

    pipe: Any
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pipe.set_progress_bar_config(disable=True)
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval()

    def __call__(self, seed: int = 0, **arguments: Any) -> Tensor:
        """Sample latents."""
        generator = torch.Generator().manual_seed(seed)
        output = self.pipe(generator=generator, **{**self.arguments, **arguments})
        latents = output[0] if isinstance(output, tuple) else next(iter(output.values()))
        if isinstance(latents, list):
            latents = torch.stack([torch.as_tensor(np.asarray(each)) for each in latents])
        return torch.as_tensor(latents)

    @property
    def transformer(self) -> Any:
        """The pipeline's transformer."""
        return self.pipe.transformer


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Draw standard normal values of a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts(width: int, tokens: int = TEXT, suffix: str = "") -> dict[str, Tensor]:
    """Embeddings of two prompts and two negative prompts, (2, tokens, width)."""
    return {
        f"prompt_embeds{suffix}": noise(2, tokens, width),
        f"negative_prompt_embeds{suffix}": noise(2, tokens, width, seed=2),
    }


def masks(tokens: int = TEXT, name: str = "prompt_attention_mask", dtype: torch.dtype = torch.float32) -> Any:
    """Masks that keep all tokens of the prompts, (2, tokens)."""
    ones = torch.ones(2, tokens, dtype=dtype)
    return {name: ones, f"negative_{name}": ones}


def pooled(width: int) -> dict[str, Tensor]:
    """Pooled embeddings of two prompts and two negative prompts, (2, width)."""
    return {"pooled_prompt_embeds": noise(2, width), "negative_pooled_prompt_embeds": noise(2, width, seed=2)}


def image(size: int = 64, **more: Any) -> dict[str, Any]:
    """Arguments that all image pipelines share."""
    return {
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "height": size,
        "width": size,
        "output_type": "latent",
        **more,
    }


def video(size: int = 64, **more: Any) -> dict[str, Any]:
    """Arguments that all video pipelines share."""
    return image(size, **{"num_frames": 9, **more})


def flow_matching(**config: Any) -> Any:
    """The scheduler of most of the pipelines."""
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def without(*names: str) -> dict[str, None]:
    """Parts of a pipeline that are left out."""
    return dict.fromkeys(names)


def autoencoder(levels: int) -> Any:
    """An autoencoder of 4 latent channels."""
    return diffusers.AutoencoderKL(
        block_out_channels=(4,) * levels,
        latent_channels=4,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        shift_factor=0.0,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Images


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


# ---------------------------------------------------------------------------------------------------------------------
# Videos


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


FAMILIES: dict[str, Callable[..., TinyPipeline]] = {
    builder.__name__: builder
    for builder in (
        *(auraflow, chroma, cogvideox, dit, flux, hunyuandit, latte, ltx, lumina2, pixart, qwen, sana, sd3, wan),
        zimage,
    )
}


def build(builder: str | Callable[..., TinyPipeline], **options: Any) -> TinyPipeline:
    """Build a pipeline, with the same weights each time; skip the test if this diffusers does not have its classes.

    Args:
        builder: The builder, or the name of a family.
        options: Options of the builder.
    """
    torch.manual_seed(0)
    try:
        return (FAMILIES[builder] if isinstance(builder, str) else builder)(**options)
    except AttributeError as error:
        if "module diffusers has no attribute" not in str(error):
            raise
        pytest.skip(f"diffusers {diffusers.__version__}: {error}")

"""A tiny pipeline with the arguments of a call, and what the builders of tiny pipelines share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
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

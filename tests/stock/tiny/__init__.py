"""Tiny random pipelines, one of each family of stock transformers, that sample latents within a second on one core.

Every builder returns a pipeline without text encoders: the embeddings of prompts are random, and so are the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from tests.stock.tiny.images import (
    auraflow,
    chroma,
    dit,
    flux,
    hunyuandit,
    lumina2,
    pixart,
    qwen,
    sana,
    sd3,
    sd3_img2img,
    zimage,
)
from tests.stock.tiny.more import allegro, cogview3plus, cogview4, hunyuanvideo, mochi
from tests.stock.tiny.parts import STEPS, TinyPipeline, noise, prompts
from tests.stock.tiny.videos import cogvideox, latte, ltx, wan

__all__ = ["FAMILIES", "STEPS", "TinyPipeline", "build", "noise", "pixart", "prompts", "sd3_img2img", "wan"]

FAMILIES: dict[str, Callable[..., TinyPipeline]] = {
    builder.__name__: builder
    for builder in (
        *(auraflow, chroma, cogvideox, dit, flux, hunyuandit, latte, ltx, lumina2, pixart, qwen, sana, sd3, wan),
        *(zimage, allegro, cogview3plus, cogview4, hunyuanvideo, mochi),
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

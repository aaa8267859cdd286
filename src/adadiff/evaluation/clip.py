"""CLIP scores: how well images match the texts that they were sampled for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from adadiff.utils.errors import InputError
from adadiff.utils.verified import require_finite, require_fitting


@dataclass(frozen=True)
class ClipScorer:
    """Scores how well images match texts, with a CLIP model and its processor."""

    model: CLIPModel
    processor: CLIPProcessor

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Compute 100 max(cos(image, text), 0) of each pair, (pairs,).

        This is CLIPScore (Hessel et al. 2021, arXiv 2104.08718) with w = 1, in percent.
        """
        inputs = self.processor(
            text=list(texts),
            images=[image.convert("RGB") for image in images],
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        output = self.model(**inputs)
        return 100 * (output.image_embeds * output.text_embeds).sum(1).clamp(min=0)


def load_clip(name: str) -> ClipScorer:
    """Load a CLIP model of transformers from a folder or by its name on the hub; only safetensors files are read.

    Raises:
        InputError: If the model does not exist, cannot be fetched, or has damaged weights.
    """
    try:
        loaded: Any = CLIPModel.from_pretrained(name, use_safetensors=True, output_loading_info=True)
        model, info = loaded
        processor = CLIPProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{name} is neither a folder with a CLIP model, nor the name of one that can be fetched from the hub: "
            f"check the name and the network connection"
        ) from error
    require_fitting(info, name)
    require_finite(model, name)
    return ClipScorer(model.eval(), processor)

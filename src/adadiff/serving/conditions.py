"""What images shall show, checked and encoded for the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from adadiff.sampling import AdaptivePipeline
from adadiff.utils.errors import InputError

REMEMBERED = 64
"""Conditions, and texts to lead away from, whose tensors are kept: the ones used last."""

Tensors = dict[str, Tensor]
"""The model's keyword arguments, (1, ...) each."""


@dataclass(frozen=True)
class Condition:
    """What an image shall show, as a request says it.

    Args:
        class_label: A class, by name or index.
        prompt: A text.
        negative_prompt: What guidance leads away from, in place of the empty prompt.
        guided: Whether sampling is guided.
    """

    class_label: int | str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    guided: bool = False


class ConditionEncoder:
    """Checks and encodes conditions for a model, each once as long as it is among the last `REMEMBERED`.

    What guidance leads away from is kept by itself, since most requests share it.

    Args:
        pipeline: The model.
    """

    def __init__(self, pipeline: AdaptivePipeline) -> None:
        self.pipeline = pipeline
        self._shown = lru_cache(REMEMBERED)(self._encode)
        self._null = lru_cache(REMEMBERED)(self._encode_null)

    def check(self, condition: Condition) -> None:
        """Raise InputError if the condition does not fit the model; no model is run."""
        pipeline = self.pipeline
        if pipeline.transformer.backbone.context_shape is None:
            self.tensors(condition)
            return
        if pipeline.text_encoder is None:
            raise InputError("the model takes text, but its folder holds no text encoder")
        for text in (condition.prompt, condition.negative_prompt or ""):
            if not isinstance(text, str):
                raise InputError("the model needs a prompt: give a text")
        if condition.class_label is not None and pipeline.transformer.backbone.num_classes is None:
            raise InputError("the model takes no class labels: leave them out")

    def tensors(self, condition: Condition) -> tuple[Tensors, Tensors]:
        """Build the model's keyword arguments for the condition and for no condition.

        The latter are empty where nothing is guided. A text encoder runs here.

        Raises:
            InputError: If the condition does not fit the model.
        """
        shown = self._shown(condition.class_label, condition.prompt)
        return shown, self._null(condition.negative_prompt) if condition.guided else {}

    @torch.no_grad()
    def _encode(self, class_label: int | str | None, prompt: str | None) -> Tensors:
        labels = None if class_label is None else [class_label]
        return self.pipeline.conditions(1, labels, None if prompt is None else [prompt])

    @torch.no_grad()
    def _encode_null(self, negative_prompt: str | None) -> Tensors:
        return self.pipeline.null_conditions(1, negative_prompt)

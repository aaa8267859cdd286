"""What images shall show, checked and encoded for the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from adadiff.sampling import AdaptivePipeline
from adadiff.utils.errors import InputError

REMEMBERED = 64
"""ConditionEncoder whose tensors are kept: the ones used last."""

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

    Args:
        pipeline: The model.
    """

    def __init__(self, pipeline: AdaptivePipeline) -> None:
        self.pipeline = pipeline
        self._encoded = lru_cache(REMEMBERED)(self._encode)

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
        return self._encoded(condition)

    @torch.no_grad()
    def _encode(self, condition: Condition) -> tuple[Tensors, Tensors]:
        labels = None if condition.class_label is None else [condition.class_label]
        prompts = None if condition.prompt is None else [condition.prompt]
        conditions = self.pipeline.conditions(1, labels, prompts)
        if not condition.guided:
            return conditions, {}
        return conditions, self.pipeline.null_conditions(1, condition.negative_prompt)

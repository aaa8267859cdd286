"""Conditions of many images: classes, prompts and guidance, assigned by the index of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adadiff.sampling.guidance import Guidance


@dataclass(frozen=True)
class Conditions:
    """The conditions of images; image k takes entry k modulo the number of entries.

    Args:
        classes: Class names or indices, for a model that takes classes.
        prompts: Prompts, for a model that takes text.
        negative_prompt: The prompt that guidance steers away from.
        guidance: The settings of classifier-free guidance.
    """

    classes: tuple[int | str, ...] = ()
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    guidance: Guidance = field(default_factory=Guidance)

    def of(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the pipeline's keyword arguments for the images of these indices."""
        return {
            "class_labels": [self.classes[k % len(self.classes)] for k in indices] if self.classes else None,
            "prompt": [self.prompts[k % len(self.prompts)] for k in indices] if self.prompts else None,
            "negative_prompt": self.negative_prompt,
            "guidance": self.guidance,
        }


UNCONDITIONAL = Conditions()

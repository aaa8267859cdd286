"""What many images shall show: classes, prompts and guidance, by the number of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adadiff.sampling.guidance import Guidance


@dataclass(frozen=True)
class Conditions:
    """What the images shall show; image k takes the k-th entry, in turns.

    Args:
        classes: Numbers or names, for a model that takes classes.
        prompts: For a model that takes text.
        negative_prompt: What guidance leads away from.
        guidance: Classifier-free guidance.
    """

    classes: tuple[int | str, ...] = ()
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    guidance: Guidance = field(default_factory=Guidance)

    def of(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Build the pipeline's arguments for the images of these numbers."""
        return {
            "class_labels": [self.classes[k % len(self.classes)] for k in numbers] if self.classes else None,
            "prompt": [self.prompts[k % len(self.prompts)] for k in numbers] if self.prompts else None,
            "negative_prompt": self.negative_prompt,
            "guidance_scale": self.guidance.scale,
            "guidance_interval": self.guidance.interval,
            "tied_exits": self.guidance.tied,
        }


UNCONDITIONAL = Conditions()

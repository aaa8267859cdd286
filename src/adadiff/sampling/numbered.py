"""Images by number: image k depends on the seed and on k alone, in batches of any size."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from adadiff.exits import ExitPolicy
from adadiff.sampling.guidance import Guidance
from adadiff.sampling.pipeline import AdaDiffPipeline, AdaDiffPipelineOutput
from adadiff.seeding import generator_for


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
        """The pipeline's arguments for the images of these numbers."""
        return {
            "class_labels": [self.classes[k % len(self.classes)] for k in numbers] if self.classes else None,
            "prompt": [self.prompts[k % len(self.prompts)] for k in numbers] if self.prompts else None,
            "negative_prompt": self.negative_prompt,
            "guidance_scale": self.guidance.scale,
            "guidance_interval": self.guidance.interval,
            "tied_exits": self.guidance.tied,
        }


UNCONDITIONAL = Conditions()


def sample_numbered(
    pipeline: AdaDiffPipeline,
    numbers: Sequence[int],
    steps: int,
    policy: ExitPolicy,
    seed: int = 0,
    conditions: Conditions = UNCONDITIONAL,
) -> AdaDiffPipelineOutput:
    """Sample the images of these numbers in one batch: a tensor, and the trace, without a progress bar."""
    quiet = copy.copy(pipeline)  # so that the caller's progress bar is left as it is
    quiet.set_progress_bar_config(disable=True)
    return quiet(
        batch_size=len(numbers),
        **conditions.of(numbers),
        num_inference_steps=steps,
        policy=policy,
        generator=[generator_for(seed, k) for k in numbers],
        output_type="pt",
    )

"""Images by number: image k depends on the seed and on k alone, in batches of any size."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from adadiff.policies import ExitPolicy
from adadiff.sampling.conditions import UNCONDITIONAL, Conditions
from adadiff.sampling.pipeline import AdaDiffPipelineOutput, AdaptivePipeline
from adadiff.utils.seeding import generator_for


def sample_seeded(
    pipeline: AdaptivePipeline,
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

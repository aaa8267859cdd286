"""Seeded sampling: image k depends only on the seed and on k, in batches of any size."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from adadiff.policies import ExitPolicy
from adadiff.sampling.conditions import UNCONDITIONAL, Conditions
from adadiff.sampling.pipeline import AdaDiffPipelineOutput, AdaptivePipeline
from adadiff.utils.seeding import generator_for


def sample_seeded(
    pipeline: AdaptivePipeline,
    indices: Sequence[int],
    steps: int,
    policy: ExitPolicy,
    seed: int = 0,
    conditions: Conditions = UNCONDITIONAL,
) -> AdaDiffPipelineOutput:
    """Sample the images of these indices in one batch, without a progress bar.

    Args:
        pipeline: The model and the scheduler.
        indices: Indices of the images; the noise of image k depends only on the seed and k.
        steps: Number of sampling steps.
        policy: The exit policy.
        seed: Seed of the noise.
        conditions: Conditions of the images, and the guidance.

    Returns:
        Images as a tensor, (batch, channels, height, width) in [0, 1], and the trace.
    """
    quiet = copy.copy(pipeline)  # so that the caller's progress bar is left as it is
    quiet.set_progress_bar_config(disable=True)
    return quiet(
        batch_size=len(indices),
        **conditions.of(indices),
        num_inference_steps=steps,
        policy=policy,
        generator=[generator_for(seed, k) for k in indices],
        output_type="pt",
    )

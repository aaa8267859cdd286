"""The depth of a plan: the schedule of exits that the calibration finds for its share of the compute."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.cache import TensorCache
from adadiff.calibration.problem import Problem
from adadiff.calibration.quick import RECORDED, quick_problem, schedule_within
from adadiff.sampling import AdaptivePipeline, Conditions, SamplingPlan
from adadiff.tuning.space import Choices
from adadiff.utils.fingerprints import fingerprint

LAST_STEP = 1000.0
"""What an error at the last step counts, over one at the step of most influence.

No later step takes fine noise out of the image. To the squared error it is next to nothing, but noise in the colours
tells generated images from real ones (`benchmarks/last_step.py`).
"""


class DepthPlanner:
    """Completes choices to plans: finds, by the calibration's dynamic programme, after which layers to exit.

    The last step runs all layers unless the budget is too small: errors count more there than in a calibration.

    What it needs is recorded once for each setting, on a few samples, and kept: every exit's error and the influence of
    each step. A schedule for another share of the compute then takes milliseconds.

    Args:
        pipeline: The model.
        conditions: Conditions of the samples.
        folder: Folder for the recordings.
        seed: Seed of the recorded noise.
    """

    def __init__(self, pipeline: AdaptivePipeline, conditions: Conditions, folder: Path, seed: int) -> None:
        self.pipeline, self.conditions, self.folder, self.seed = pipeline, conditions, folder, seed
        self.parts = pipeline.transformer.part_flops
        self._latest: tuple[SamplingPlan, Problem] | None = None

    def plan(self, choices: Choices, most_flops: float = math.inf) -> SamplingPlan:
        """Return the plan for these choices, with less depth than they say where it would exceed a budget.

        Args:
            choices: The point of the search space.
            most_flops: FLOPs that an image may take. Even the least schedule may take more.
        """
        full = choices.with_all_layers
        all_flops = full.flops(self.parts)
        share = min(choices.depth, most_flops / all_flops)
        if share >= 1:
            return full
        policy = schedule_within(
            self._problem(full), share, lambda policy: replace(full, policy=policy).flops(self.parts) / all_flops
        )
        return replace(full, policy=policy)

    def _problem(self, full: SamplingPlan) -> Problem:
        if self._latest is None or self._latest[0] != full:
            self._latest = (full, self._recorded(full))
        return self._latest[1]

    def _recorded(self, full: SamplingPlan) -> Problem:
        conditions = replace(self.conditions, guidance=full.guidance)
        sampling = AdaptiveSampling(self.pipeline.with_plan(full), full.steps, conditions, self.seed)
        settings = {"plan": full.describe(), "samples": RECORDED, "seed": self.seed}
        problem = quick_problem(sampling, TensorCache(self.folder / fingerprint([settings]), settings))
        influence = problem.influence.clone()
        influence[-1] = LAST_STEP * influence.max()
        return replace(problem, influence=influence)

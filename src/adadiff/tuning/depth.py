"""The depth of a plan: the schedule of exits that the calibration finds for its share of the compute."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.cache import TensorCache
from adadiff.calibration.influence import measured_influence
from adadiff.calibration.kinds import CorrectedSchedule
from adadiff.calibration.problem import Problem
from adadiff.calibration.record import ExitRecord
from adadiff.sampling import AdaptivePipeline, Conditions, SamplingPlan
from adadiff.tuning.space import Choices
from adadiff.utils.fingerprints import fingerprint

RECORDED = 16  # samples whose exits are recorded for each setting
PROBED_STEPS, PROBED_SAMPLES = 4, 4  # of the influence
LEAST_SHARE = 0.01
CORRECTIONS = 4  # most trials to bring a schedule within its share, heads that measure corrections included


class DepthPlanner:
    """Completes choices to plans: finds, by the calibration's dynamic programme, after which layers to exit.

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
        problem, asked = self._problem(full), share
        for _ in range(CORRECTIONS):
            plan = replace(full, policy=CorrectedSchedule().meeting(problem, max(asked, LEAST_SHARE)))
            excess = plan.flops(self.parts) / all_flops - share
            if excess <= 0:
                break
            asked -= excess
        return plan

    def _problem(self, full: SamplingPlan) -> Problem:
        if self._latest is None or self._latest[0] != full:
            self._latest = (full, self._recorded(full))
        return self._latest[1]

    def _recorded(self, full: SamplingPlan) -> Problem:
        conditions = replace(self.conditions, guidance=full.guidance)
        sampling = AdaptiveSampling(self.pipeline.with_plan(full), full.steps, conditions, self.seed)
        settings = {"plan": full.describe(), "samples": RECORDED, "seed": self.seed}
        cache = TensorCache(self.folder / fingerprint([settings]), settings)
        record = ExitRecord(**cache.compute_once("exits", lambda: sampling.record(range(RECORDED))))
        influence = cache.compute_once(
            "influence", lambda: {"steps": measured_influence(sampling, record, PROBED_STEPS, PROBED_SAMPLES, False)}
        )["steps"]
        return Problem(record, influence, self.parts, sampling.predictions(len(influence)))

"""The depth of a plan: the schedule of exits that the calibration finds for its share of the compute."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from adadiff.calibration.cache import TensorCache
from adadiff.calibration.problem import Problem
from adadiff.calibration.quick import RECORDED, quick_problem, schedule_within
from adadiff.calibration.sampling import Sampling
from adadiff.policies import ExitPolicy
from adadiff.sampling import SamplingPlan
from adadiff.tuning.space import Choices
from adadiff.tuning.tunable import Tunable
from adadiff.utils.fingerprints import fingerprint

LAST_STEP = 10_000.0
"""What an error at the last step counts, over one at the step of most influence.

No later step takes fine noise out of the image. To the squared error it is next to nothing, but noise in the colours
tells generated images from real ones (`benchmarks/late_steps.py`).
"""

LATE_STEPS = 20.0
"""How many times its squared error in the final image an error at the last step but one counts, one at the first once.

Steps between count in geometric progression. What an early step gets wrong, the network makes another image of, as good
as any; what a late one gets wrong stays. The squared error does not tell the two apart, real images do
(`benchmarks/late_steps.py`).
"""


class DepthPlanner:
    """Completes choices to plans: finds, by the calibration's dynamic programme, after which layers to exit.

    Errors at late steps count more than in a calibration, and the last step runs all layers unless the budget is too
    small.

    What it needs is recorded once for each setting, on a few samples, and kept: every exit's error and the influence of
    each step. A schedule for another share of the compute then takes milliseconds.

    Args:
        model: The model.
        folder: Folder for the recordings.
        seed: Seed of the recorded noise.
    """

    def __init__(self, model: Tunable, folder: Path, seed: int) -> None:
        self.model, self.folder, self.seed = model, folder, seed
        self._latest: tuple[SamplingPlan, Problem] | None = None

    def plan(self, choices: Choices, most_flops: float = math.inf) -> SamplingPlan:
        """Return the plan for these choices, with less depth than they say where it would exceed a budget.

        Args:
            choices: The point of the search space.
            most_flops: FLOPs that an image may take. Even the least schedule may take more.
        """
        full = choices.with_all_layers
        all_flops = self.model.flops(full)
        share = min(choices.depth, most_flops / all_flops)
        if share >= 1:
            return full
        sampling = self.model.sampling(full, self.seed)

        def planned(policy: ExitPolicy) -> SamplingPlan:
            return replace(full, policy=sampling.on_model(policy))

        problem = self._problem(full, sampling)
        return planned(schedule_within(problem, share, lambda policy: self.model.flops(planned(policy)) / all_flops))

    def _problem(self, full: SamplingPlan, sampling: Sampling) -> Problem:
        if self._latest is None or self._latest[0] != full:
            self._latest = (full, self._recorded(full, sampling))
        return self._latest[1]

    def _recorded(self, full: SamplingPlan, sampling: Sampling) -> Problem:
        settings = {"plan": full.describe(), "samples": RECORDED, "seed": self.seed}
        problem = quick_problem(sampling, TensorCache(self.folder / fingerprint([settings]), settings))
        late = torch.logspace(0, 1, len(problem.influence), base=LATE_STEPS)
        influence = problem.influence * late
        influence[-1] = LAST_STEP * influence.max()
        return replace(problem, influence=influence)

    @staticmethod
    def describe() -> dict[str, float]:
        """Describe, as plain values, what schedules depend on besides the model and the choices."""
        return {"last_step": LAST_STEP, "late_steps": LATE_STEPS}

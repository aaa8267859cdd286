"""The score that a search goes by: distances relative to the default plan's, and by how much floors are missed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from adadiff.sampling import SamplingPlan
from adadiff.sampling.finite import NonFiniteImagesError
from adadiff.tuning.goal import TuningGoal
from adadiff.tuning.measure import Measurement, Measurer
from adadiff.tuning.search import Score
from adadiff.tuning.tunable import Tunable
from adadiff.utils.errors import InputError

WORST = 1000.0  # objective of a plan whose images are not finite
NEIGHBOURHOODS = ("precision", "recall")  # the closer the more images there are


class Scorer:
    """Scores plans by their first so many images.

    Distances and compute are relative to those of the model's default plan.

    Args:
        measurer: Measures images.
        networks: Names of the networks that the search goes by.
        goal: Budget and floors.
        budget: The budget as FLOPs over the default plan's, or None.
        seed: Seed of the noise of the search.
        confirming: The last round's number of images, and the number of fresh ones that the floors must hold on
            afterwards. A floor is raised by one standard error of a share for both, since a plan that just meets it
            would miss it on every second set of fresh images.
    """

    def __init__(
        self,
        measurer: Measurer,
        networks: Sequence[str],
        goal: TuningGoal,
        budget: float | None,
        seed: int,
        confirming: tuple[int, int],
    ) -> None:
        self.measurer, self.networks, self.seed = measurer, tuple(networks), seed
        self.goal, self.budget, self.confirming = goal, budget, confirming
        self._rests: dict[tuple[str, int], float] = {}

    @property
    def model(self) -> Tunable:
        """The model."""
        return self.measurer.model

    @property
    def fresh_seed(self) -> int:
        """Seed of the noise of fresh images, another than the search's."""
        return self.seed + 1

    def predicted(self, plan: SamplingPlan) -> float | None:
        """Return the FLOPs of a plan over the default plan's, exactly; None if they depend on the samples."""
        try:
            return self.model.flops(plan) / self.model.flops(self.model.default)
        except InputError:
            return None

    def score(self, plan: SamplingPlan, images: int) -> Score:
        """Score a plan under floors and budget."""
        return self._score(plan, images, self.budget)

    def score_floors(self, plan: SamplingPlan, images: int) -> Score:
        """Score a plan under the floors alone, as the full model's are."""
        return self._score(plan, images, None)

    def _score(self, plan: SamplingPlan, images: int, budget: float | None) -> Score:
        predicted = self.predicted(plan)
        if budget is not None and predicted is not None and predicted > budget + 1e-9:  # known without sampling
            return Score(WORST, predicted, (predicted / budget - 1,))
        try:
            measured = self.measurer.measure(plan, images, self.seed, tuple(self.goal.floors))
        except NonFiniteImagesError:
            return Score(WORST, 1.0 if predicted is None else predicted, (1.0,))
        reference = self.measurer.measure(self.model.default, images, self.seed)
        compute = measured.flops / reference.flops
        over = () if budget is None else (compute / budget - 1,)
        return Score(measured.relative(self.networks, reference), compute, (*over, *self._missed(measured)))

    def _missed(self, measured: Measurement) -> tuple[float, ...]:
        missed = []
        for name, floor in self.goal.floors.items():
            variance = 0.0 if name == "clip_score" else floor * (1 - floor)
            raised = floor + math.sqrt(variance * sum(1 / images for images in self.confirming))
            if name in NEIGHBOURHOODS:
                raised = 1 - (1 - raised) * self._rest_of_few(name, measured.images)
            missed.append((raised - measured.shares[name]) / max(floor, 1e-9))
        return tuple(missed)

    def _rest_of_few(self, name: str, images: int) -> float:
        """Return what the default's precision or recall lacks of 1 by so many images, over that by the fresh images.

        Both depend on the number of images, and the floors are for the fresh ones.
        """
        if (name, images) not in self._rests:
            default, fresh = self.model.default, self.confirming[1]
            here = self.measurer.measure(default, images, self.seed, [name]).shares[name]
            there = self.measurer.measure(default, fresh, self.fresh_seed, [name]).shares[name]
            self._rests[name, images] = 1.0 if there == 1 else (1 - here) / (1 - there)
        return self._rests[name, images]

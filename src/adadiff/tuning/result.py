"""What a search found: plans with what fresh images say of them, and which of them is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adadiff.policies.stored import StoredPolicy
from adadiff.sampling import SamplingPlan
from adadiff.tuning.goal import TuningGoal
from adadiff.tuning.measure import Measurement
from adadiff.tuning.search import Score
from adadiff.tuning.tunable import Tunable
from adadiff.utils.errors import InputError


@dataclass(frozen=True)
class Confirmed:
    """A plan measured on fresh images, which had no part in the search.

    Args:
        plan: The plan.
        compute: FLOPs of an image over the default plan's, as counted while sampling.
        predicted: The same as predicted before sampling; None if it depends on the samples.
        fresh: Measurement of the fresh images.
        seconds: Seconds of an image in a batch, timed in turns with the other plans; None if it was not timed.
    """

    plan: SamplingPlan
    compute: float
    predicted: float | None
    fresh: Measurement
    seconds: float | None = None

    def describe(self) -> dict[str, Any]:
        """Return what the fresh images say, as plain values."""
        return {
            "compute": self.compute,
            "seconds": self.seconds,
            "frechet": dict(self.fresh.distances),
            "frechet_error": dict(self.fresh.errors),
            **self.fresh.shares,
        }

    @property
    def described_with_plan(self) -> dict[str, Any]:
        """What the fresh images say, and the plan, as plain values."""
        return {**self.describe(), "plan": self.plan.describe()}

    def missed(self, goal: TuningGoal, budget: float | None) -> dict[str, float]:
        """Return by how much the fresh images miss each floor, and the plan the budget, as a fraction of it."""
        missed = {
            name: (floor - self.fresh.shares[name]) / floor
            for name, floor in goal.floors.items()
            if self.fresh.shares[name] < floor
        }
        if budget is not None and self.compute > budget + 1e-3:
            missed["compute"] = (self.compute - budget) / budget
        return missed


@dataclass(frozen=True)
class Tuning:
    """The result of a search.

    Args:
        goal: Budget and floors.
        budget: The budget as FLOPs over the default plan's; None for the whole front.
        networks: Names of the networks that the search went by.
        judges: Names of the networks that it did not go by, which alone name the winner.
        default: The default plan with all layers.
        full: Full models at the guidance that the same search found best under the same floors, any compute.
        tuned: The best plans that the search found.
        trials: Scores of all trials of the search for plans, by the fewest images.
    """

    goal: TuningGoal
    budget: float | None
    networks: tuple[str, ...]
    judges: tuple[str, ...]
    default: Confirmed
    full: tuple[Confirmed, ...]
    tuned: tuple[Confirmed, ...]
    trials: tuple[Score, ...]

    @property
    def best_full(self) -> Confirmed:
        """The full model at its own best guidance, named by the judges among those that meet the floors.

        If none does, the one that comes nearest to them.
        """
        return self._named(self.full, None)

    @property
    def chosen(self) -> Confirmed | None:
        """The plan that the judges name among those that meet floors and budget on the fresh images; None if none does.

        Without a budget it is the plan of least compute that the judges call no worse than the full model at its own
        best guidance; if there is none, the best.
        """
        meeting = [each for each in self.tuned if not each.missed(self.goal, self.budget)]
        if not meeting:
            return None
        if self.budget is None:
            reference = self.by_judges(self.best_full)
            as_good = [each for each in meeting if self.by_judges(each) <= reference]
            if as_good:
                return min(as_good, key=lambda each: each.compute)
        return min(meeting, key=self.by_judges)

    @property
    def nearest(self) -> Confirmed:
        """The plan that misses floors and budget by least in sum."""
        return self._named(self.tuned, self.budget)

    def by_judges(self, confirmed: Confirmed) -> float:
        """Return the mean over the judges of the distance over the default plan's."""
        return confirmed.fresh.relative(self.judges, self.default.fresh)

    def _named(self, plans: Sequence[Confirmed], budget: float | None) -> Confirmed:
        return min(plans, key=lambda each: (sum(each.missed(self.goal, budget).values()), self.by_judges(each)))

    def stored(self, model: Tunable) -> StoredPolicy:
        """Return the chosen plan in the form that a folder of this model stores, with what fresh images say of it.

        Raises:
            InputError: If no plan meets the floors.
        """
        if self.chosen is None:
            raise InputError("no plan met the floors: there is none to store")
        found = {
            "images": self.chosen.fresh.images,
            "searched_by": list(self.networks),
            "named_by": list(self.judges),
            **self.chosen.describe(),
            "default": self.default.described_with_plan,
            "full_model_at_its_best": self.best_full.described_with_plan,
        }
        plan = self.chosen.plan
        return model.context(plan).stored(plan.policy, {**self.goal.budget, **self.goal.floors}, found)

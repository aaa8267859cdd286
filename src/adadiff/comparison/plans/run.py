"""The comparison of tuned plans: the same search, with as many trials and the same freedom, for every method."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adadiff.calibration.cache import TensorCache
from adadiff.comparison.plans.config import PlansConfig
from adadiff.comparison.plans.methods import METHODS, FullModel, PlanMethod
from adadiff.evaluation.evaluator import Evaluator
from adadiff.sampling import SamplingPlan
from adadiff.tuning import Tunable, TuneConfig, TuningGoal
from adadiff.tuning.confirm import confirm
from adadiff.tuning.depth import DepthPlanner
from adadiff.tuning.measure import Measurer
from adadiff.tuning.progress import Progress, searched_images
from adadiff.tuning.result import Confirmed
from adadiff.tuning.score import Scorer
from adadiff.tuning.search import Search, open_study
from adadiff.tuning.space import Space
from adadiff.utils.errors import InputError
from adadiff.utils.files import claim_folder, exclusive_folder

CONFIG, FEATURES, RECORDINGS = "compare.json", "features", "recordings"
START_SHARES = (0.25, 0.5)  # of the compute, that the first trials of each method spend
STARTED_FROM = 2  # best guidances of the full model that they begin with, beside the default's
TOLERANCE = 0.005  # compute that a plan may take beyond a target


@dataclass(frozen=True)
class Front:
    """The plans that a method's search found best under a floor.

    Args:
        method: Name of the method.
        floor: Least class agreement.
        default: The default plan, timed in turns with the others.
        points: The plans, measured on fresh images; those that miss the floor there are left out.
    """

    method: str
    floor: float
    default: Confirmed
    points: tuple[Confirmed, ...]


@dataclass(frozen=True)
class PlanResults:
    """The results of a comparison of tuned plans.

    Args:
        config: The configuration of the comparison.
        default: The model's default plan with all layers.
        fronts: The fronts of all methods at all floors.
    """

    config: PlansConfig
    default: Confirmed
    fronts: tuple[Front, ...]

    def by_judges(self, confirmed: Confirmed) -> float:
        """Return the mean over the judges of the distance over the default plan's."""
        return confirmed.fresh.relative(self.config.judges, self.default.fresh)

    def at(self, method: str, floor: float, target: float) -> Confirmed | None:
        """Return the plan that the judges name among a method's with at most this compute; None if it has none."""
        points = next((front.points for front in self.fronts if (front.method, front.floor) == (method, floor)), ())
        within = [point for point in points if point.compute <= target + TOLERANCE]
        return min(within, key=self.by_judges, default=None)


def compare_plans(
    config: PlansConfig,
    model: Tunable,
    evaluator: Evaluator,
    out: Path,
) -> PlanResults:
    """Search the best plans of every method under every floor, and measure them on fresh images.

    Under each floor the full model's best guidance is searched first; the searches of all methods begin with it.

    Args:
        config: The configuration of the comparison.
        model: The model, whose default plan compute and distances are relative to. It is left as it was.
        evaluator: The networks of the configuration: those that the searches go by first.
        out: Folder of the report: new, empty, or one begun with the same configuration, which is continued.

    Raises:
        InputError: If the folder holds a comparison of other settings, weights or real images, a floor cannot be
            measured, there are too few images, the compute is below that of one step, or a method is for models of
            adadiff's own and this is none.
    """
    config = config if model.is_own else _without_own_methods(config)
    with model.kept():
        return _compare(config, model, evaluator, out)


def _compare(config: PlansConfig, model: Tunable, evaluator: Evaluator, out: Path) -> PlanResults:
    """Compare by methods that all run this model; for the rest see `compare_plans`."""
    evaluator.require_enough(min(*config.images, config.confirm))
    evaluator.require_independent(config.judges, config.features)
    progress, full = Progress("comparing"), model.flops(model.default)
    if config.most_compute * full < model.prediction_flops:
        least = model.prediction_flops / full
        raise InputError(f"most_compute is {config.most_compute}: one step with all layers takes {least:.3g}")

    def count(flops: int, sampled: bool) -> None:
        progress.add(flops / full, sampled)

    cache = TensorCache(out / FEATURES, {})
    measurer = Measurer(model, evaluator, cache, config.batch_size, count)
    if any(config.floors):
        measurer.require(("agreement",))
    with exclusive_folder(out), progress:
        measured = {"measured": measurer.describe(config.seed), "depth": DepthPlanner.describe()}
        claim_folder(out, CONFIG, {**asdict(config), **measured}, "a comparison")
        progress.total = _expected_images(config)
        planner = DepthPlanner(model, out / RECORDINGS, config.seed + 2)
        searches = _Searches(config, measurer, planner, out)
        fronts = [
            searches.front(METHODS[name], floor) for floor, name in itertools.product(config.floors, config.compared)
        ]
        return PlanResults(config, fronts[0].default, tuple(fronts))


def _without_own_methods(config: PlansConfig) -> PlansConfig:
    """Leave out the methods that are for models of adadiff's own; raise InputError if one of them was asked for."""
    for name in config.methods:
        if METHODS[name].for_own_models:
            raise InputError(f"the method {name} is for models of adadiff's own, and {config.model} is none")
    possible = tuple(name for name, method in METHODS.items() if not method.for_own_models)
    return replace(config, methods=config.methods or possible)


def _expected_images(config: PlansConfig) -> float:
    """Estimate how many images the comparison samples, in images of the default plan."""
    searched = searched_images(config.trials, config.images) + config.points * config.confirm
    computes = [1.0 if name == FullModel.name else config.most_compute / 2 for name in config.compared]
    return config.images[-1] + config.confirm + len(config.floors) * sum(computes) * searched


class _Searches:
    """Searches fronts; for the arguments see `compare_plans`."""

    def __init__(self, config: PlansConfig, measurer: Measurer, planner: DepthPlanner, out: Path) -> None:
        self.config, self.measurer, self.planner, self.out = config, measurer, planner, out
        self.default, self.everything = measurer.model.default, measurer.model.space()
        self._full: dict[float, list[SamplingPlan]] = {}

    def front(self, method: PlanMethod, floor: float) -> Front:
        """Search a method's plans under a floor; those that fresh images show to miss it are left out."""
        config = self.config
        scored = self._search(method, floor).run(config.trials, config.images, config.points)
        found = [each.candidate for each in scored if each.score.all_missed == 0]
        if isinstance(method, FullModel):
            self._full[floor] = found[:STARTED_FROM]
        default, *confirmed = confirm(self._scorer(config.search(floor)), [self.default, *found])
        kept = [point for point in confirmed if not point.missed(TuningGoal(agreement=floor or None), None)]
        return Front(method.name, floor, default, tuple(sorted(kept, key=lambda point: point.compute)))

    def _search(self, method: PlanMethod, floor: float) -> Search[SamplingPlan]:
        space, reference = method.space(self.everything, self.default), isinstance(method, FullModel)
        most = math.inf if reference else self.config.most_compute * self.measurer.model.flops(self.default)
        scorer = self._scorer(self.config.search(floor))
        return Search(
            open_study(self.out, f"{method.name}, agreement {floor:g}", 1 if reference else 2),
            lambda trial: method.plan(trial, space.suggest(trial), self.planner, most),
            scorer.score_floors if reference else scorer.score,
            space.starts(self.default, 1.0) if reference else self._starts(method, space, floor),
            self.config.seed,
        )

    def _starts(self, method: PlanMethod, space: Space, floor: float) -> list[dict[str, Any]]:
        """Return a method's first trials, with the full model's best guidance and with the default's."""
        starts = [
            {**space.parameters(plan), **method.start(share * self.default.steps / steps, steps)}
            for share in START_SHARES
            for plan in (*self._full[floor], self.default)
            for steps in (self.default.steps, space.steps[1])
        ]
        starts = [{**start, "steps": max(space.steps[0], start["steps"])} for start in starts]
        return [start for place, start in enumerate(starts) if start not in starts[:place]]

    def _scorer(self, search: TuneConfig) -> Scorer:
        config = self.config
        budget, confirming = config.most_compute, (config.images[-1], config.confirm)
        return Scorer(self.measurer, config.features, search.goal, budget, config.seed, confirming)

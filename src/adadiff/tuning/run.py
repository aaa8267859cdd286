"""Tuning: from a model, real images and a goal to the plan that the judges name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adadiff.calibration.cache import TensorCache
from adadiff.evaluation.evaluator import Evaluator
from adadiff.sampling import SamplingPlan
from adadiff.tuning.config import TuneConfig
from adadiff.tuning.confirm import confirm, seconds_of
from adadiff.tuning.depth import DepthPlanner
from adadiff.tuning.measure import Measurer
from adadiff.tuning.progress import Progress, expected_images
from adadiff.tuning.result import Tuning
from adadiff.tuning.score import Scorer
from adadiff.tuning.search import Search, open_study
from adadiff.tuning.tunable import Tunable
from adadiff.utils.errors import InputError
from adadiff.utils.files import claim_folder, exclusive_folder, read_json, write_json

NOTE, SECONDS, FEATURES, RECORDINGS = "search.json", "seconds.json", "features", "recordings"
FINALISTS = 3  # plans of each search that fresh images are sampled of, at most
STARTED_FROM = 2  # full models at their best guidance, which the search for plans begins with


def tune(model: Tunable, evaluator: Evaluator, config: TuneConfig, folder: Path) -> Tuning:
    """Search the sampling plans of a model for the best images under a budget and floors.

    Two searches with the same number of trials: one for the full model's own best guidance, which is the reference, and
    one for plans, which begins with what the first found. The best of each, and the full model at the guidance of the
    best plans, are measured on fresh images, and named by networks that no search went by.

    Args:
        model: The model: a `TunablePipeline` or a `TunableStockPipeline`. It is left as it was.
        evaluator: All networks: those that the search goes by first, then the judges. With the scorer of prompts, or
            none.
        config: How to search.
        folder: A new or empty folder, or that of the same search, which goes on.

    Raises:
        InputError: If there are too few images for the features, the budget is below one full step or above what any
            plan takes, a floor cannot be measured, or the folder holds another search.
    """
    job = _Job(model, evaluator, config, folder)
    with model.kept():
        job.check()
        with exclusive_folder(folder):
            claim_folder(folder, NOTE, _description(job), "a search")
            with job.progress:
                return job.run()


class _Job:
    """One search; for the arguments see `tune`."""

    def __init__(self, model: Tunable, evaluator: Evaluator, config: TuneConfig, folder: Path) -> None:
        self.model, self.evaluator, self.config, self.folder = model, evaluator, config, folder
        self.default, self.goal, self.progress = model.default, config.goal, Progress()
        cache = TensorCache(folder / FEATURES, {})
        self.measurer = Measurer(model, evaluator, cache, config.batch_size, self._count)

    def check(self) -> None:
        """Raise InputError, before anything is sampled, if the search cannot be made."""
        config = self.config
        self.evaluator.require_enough(config.images[0], "the {n} images that --images begins with")
        self.evaluator.require_enough(config.confirm, "the {n} images of --confirm")
        self.evaluator.require_independent(config.judges, config.features)
        self.measurer.require(tuple(self.goal.floors))
        least, most = self.model.prediction_flops, self.model.flops(self.model.space().dearest(self.default))
        for unit, flops in {"compute": self._default_flops, "gflops": self._gflop}.items():
            value = self.goal.budget.get(unit)
            if value is not None and value * flops < least:
                raise InputError(f"the budget {unit} is {value}: one step with all layers takes {least / flops:.3g}")
            if value is not None and value * flops > most:
                raise InputError(
                    f"the budget {unit} is {value}: no plan of this search takes more than {most / flops:.3g}; choose "
                    f"less, or leave the budget out"
                )

    def run(self) -> Tuning:
        """Search, confirm, and return what was found."""
        config, budget = self.config, self._budget()
        self.progress.total = expected_images(config, budget, FINALISTS)
        scorer = Scorer(
            self.measurer, config.features, self.goal, budget, config.seed, (config.images[-1], config.confirm)
        )
        full = self._full_search(scorer)
        best_full = full.run(config.trials, config.images, FINALISTS)
        plans = self._search(scorer, budget, [each.candidate for each in best_full[:STARTED_FROM]])
        tuned = [each.candidate for each in plans.run(config.trials, config.images, FINALISTS)]
        alike = [replace(self.default, guidance=plan.guidance) for plan in tuned]  # else guidance may explain it all
        references = list(dict.fromkeys([*(each.candidate for each in best_full), *alike]))
        distinct = tuple(dict.fromkeys([self.default, *tuned, *references]))
        confirmed = dict(zip(distinct, confirm(scorer, distinct), strict=True))
        tried = [plans.score_of(trial) for trial in plans.finished[: config.trials]]
        return Tuning(
            self.goal,
            budget,
            config.features,
            config.judges,
            confirmed[self.default],
            tuple(confirmed[plan] for plan in references),
            tuple(confirmed[plan] for plan in tuned),
            tuple(tried),
        )

    def _full_search(self, scorer: Scorer) -> Search[SamplingPlan]:
        space = self.model.space().with_all_layers(self.default.steps)
        return Search(
            open_study(self.folder, "full model", 1),
            lambda trial: space.suggest(trial).with_all_layers,
            scorer.score_floors,
            space.starts(self.default, 1.0),
            self.config.seed,
        )

    def _search(self, scorer: Scorer, budget: float | None, full: Sequence[SamplingPlan]) -> Search[SamplingPlan]:
        space = self.model.space()
        planner = DepthPlanner(self.model, self.folder / RECORDINGS, self.config.seed + 2)
        most_flops = math.inf if budget is None else budget * self._default_flops
        return Search(
            open_study(self.folder, "plans", 1 if self.goal.budget else 2),
            lambda trial: planner.plan(space.suggest(trial), most_flops),
            scorer.score,
            space.starts(self.default, budget, full),
            self.config.seed,
        )

    def _budget(self) -> float | None:
        """Return the budget as FLOPs over the default plan's; what seconds come to is measured once and noted."""
        goal = self.goal
        if goal.gflops is not None:
            return goal.gflops * self._gflop / self._default_flops
        if goal.seconds is None:
            return goal.compute
        note = self.folder / SECONDS
        if not note.is_file():
            write_json(note, {"seconds_of_default": seconds_of(self.model, [self.default])[0]})
        seconds = read_json(note).get("seconds_of_default")
        if not isinstance(seconds, float) or not seconds > 0:
            raise InputError(f"{note} is damaged: delete it, and the default is timed again")
        budget = goal.seconds / seconds
        if budget < (least := self.model.prediction_flops / self._default_flops):
            one_step = goal.seconds * least / budget
            raise InputError(f"the budget seconds is {goal.seconds}: one step with all layers takes {one_step:.3g}")
        return budget

    def _count(self, flops: int, sampled: bool) -> None:
        self.progress.add(flops / self._default_flops, sampled)

    @property
    def _gflop(self) -> float:
        """A billion FLOPs in the model's units."""
        return 1e9 / self.model.unit_flops

    @cached_property
    def _default_flops(self) -> float:
        return self.model.flops(self.default)


def _description(job: _Job) -> dict[str, Any]:
    """Describe, as plain values, everything that a search's trials depend on; more trials may follow."""
    config = job.config
    return {
        **job.measurer.describe(config.seed),
        "depth": DepthPlanner.describe(),
        "goal": asdict(config.goal),
        "features": list(config.features),
        "images": list(config.images),
        "seed": config.seed,
    } | ({"confirm": config.confirm} if config.goal.floors else {})  # floors are raised by it

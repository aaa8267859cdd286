"""Tuning: from a model, real images and a goal to the plan that the judges name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from adadiff.calibration.cache import TensorCache
from adadiff.evaluation.evaluator import Evaluator
from adadiff.policies import NeverExit
from adadiff.sampling import AdaptivePipeline, Conditions, SamplingPlan
from adadiff.sampling.folder import Spread, one_by_one, sampling_request
from adadiff.sampling.schedulers import scheduler_name, spacing_of
from adadiff.tuning.config import TuneConfig
from adadiff.tuning.confirm import confirm, seconds_of
from adadiff.tuning.depth import DepthPlanner
from adadiff.tuning.measure import Measurer
from adadiff.tuning.progress import Progress, expected_images
from adadiff.tuning.result import Tuning
from adadiff.tuning.score import Scorer
from adadiff.tuning.search import Search, open_study
from adadiff.tuning.space import Space
from adadiff.utils.errors import InputError
from adadiff.utils.files import claim_folder, exclusive_folder, read_json, write_json
from adadiff.utils.fingerprints import fingerprint

NOTE, SECONDS, FEATURES, RECORDINGS = "search.json", "seconds.json", "features", "recordings"
FINALISTS = 3  # plans of each search that fresh images are sampled of, at most
STARTED_FROM = 2  # full models at their best guidance, which the search for plans begins with


def tune(
    pipeline: AdaptivePipeline,
    default: SamplingPlan,
    conditions: Conditions,
    evaluator: Evaluator,
    config: TuneConfig,
    folder: Path,
    spread: Spread = one_by_one,
) -> Tuning:
    """Search the sampling plans of a model for the best images under a budget and floors.

    Two searches with the same number of trials: one for the full model's own best guidance, which is the reference, and
    one for plans, which begins with what the first found. The best of each, and the full model at the guidance of the
    best plans, are measured on fresh images, and named by networks that no search went by.

    Args:
        pipeline: The model.
        default: Its default plan with all layers, with scheduler and spacing named; compute is relative to it.
        conditions: Conditions of the images; plans choose the guidance.
        evaluator: All networks: those that the search goes by first, then the judges. With the scorer of prompts, or
            none.
        config: How to search.
        folder: A new or empty folder, or that of the same search, which goes on.
        spread: Samples the images that are measured, here or on many machines; exits are recorded and plans are timed
            in this process.

    Raises:
        InputError: If there are too few images for the features, the budget is below one full step, a floor cannot be
            measured, or the folder holds another search.
    """
    job = _Job(pipeline, default, conditions, evaluator, config, folder, spread)
    job.check()
    with exclusive_folder(folder):
        claim_folder(folder, NOTE, _description(job), "a search")
        with job.progress:
            return job.run()


def default_plan(pipeline: AdaptivePipeline, plan: SamplingPlan) -> SamplingPlan:
    """Return a plan with all layers, with the pipeline's scheduler and its spacing named."""
    scheduler = pipeline.scheduler
    return replace(plan.without_exits, scheduler=scheduler_name(scheduler), spacing=spacing_of(scheduler))


class _Job:
    """One search; for the arguments see `tune`."""

    def __init__(
        self,
        pipeline: AdaptivePipeline,
        default: SamplingPlan,
        conditions: Conditions,
        evaluator: Evaluator,
        config: TuneConfig,
        folder: Path,
        spread: Spread,
    ) -> None:
        self.pipeline, self.default, self.conditions, self.config = pipeline, default, conditions, config
        self.evaluator, self.folder, self.goal = evaluator, folder, config.goal
        self.parts = pipeline.transformer.part_flops
        self.progress = Progress()
        cache = TensorCache(folder / FEATURES, {})
        self.measurer = Measurer(pipeline, conditions, evaluator, cache, config.batch_size, self._count, spread)

    def check(self) -> None:
        """Raise InputError, before anything is sampled, if the search cannot be made."""
        config = self.config
        self.evaluator.require_enough(config.images[0], "the {n} images that --images begins with")
        self.evaluator.require_enough(config.confirm, "the {n} images of --confirm")
        self.measurer.require(tuple(self.goal.floors))
        least = {"compute": self.parts.full / self.default.flops(self.parts), "gflops": self.parts.full / 1e9}
        for unit, value in self.goal.budget.items():
            if unit in least and value < least[unit]:
                raise InputError(f"the budget {unit} is {value}: one step with all layers takes {least[unit]:.3g}")

    def run(self) -> Tuning:
        """Search, confirm, and return what was found."""
        config, budget = self.config, self._budget()
        self.progress.total = expected_images(config, budget, FINALISTS)
        scorer = Scorer(
            self.measurer,
            self.default,
            config.features,
            self.goal,
            budget,
            config.seed,
            (config.images[-1], config.confirm),
        )
        full = self._full_search(scorer)
        best_full = full.run(config.trials, config.images)[:FINALISTS]
        plans = self._search(scorer, budget, [each.candidate for each in best_full[:STARTED_FROM]])
        tuned = [each.candidate for each in plans.run(config.trials, config.images)[:FINALISTS]]
        alike = [replace(self.default, guidance=plan.guidance) for plan in tuned]  # else guidance may explain it all
        references = list(dict.fromkeys([*(each.candidate for each in best_full), *alike]))
        distinct = tuple(dict.fromkeys([self.default, *tuned, *references]))
        confirmed = dict(zip(distinct, confirm(scorer, distinct, config.confirm, config.seed + 1), strict=True))
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
        space = Space.of(self.pipeline, self.default).with_all_layers(self.default.steps)
        return Search(
            open_study(self.folder, "full model", 1),
            lambda trial: space.suggest(trial).with_all_layers,
            scorer.score_floors,
            space.starts(self.default, 1.0),
            self.config.seed,
        )

    def _search(self, scorer: Scorer, budget: float | None, full: Sequence[SamplingPlan]) -> Search[SamplingPlan]:
        space = Space.of(self.pipeline, self.default)
        planner = DepthPlanner(self.pipeline, self.conditions, self.folder / RECORDINGS, self.config.seed + 2)
        most_flops = math.inf if budget is None else budget * self.default.flops(self.parts)
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
            return goal.gflops * 1e9 / self.default.flops(self.parts)
        if goal.seconds is None:
            return goal.compute
        note = self.folder / SECONDS
        if not note.is_file():
            write_json(note, {"seconds_of_default": seconds_of(self.measurer, [self.default])[0]})
        budget = goal.seconds / float(read_json(note)["seconds_of_default"])
        if budget < (least := self.parts.full / self.default.flops(self.parts)):
            one_step = goal.seconds * least / budget
            raise InputError(f"the budget seconds is {goal.seconds}: one step with all layers takes {one_step:.3g}")
        return budget

    def _count(self, flops: int, sampled: bool) -> None:
        self.progress.add(flops / self.default.flops(self.parts), sampled)


def _description(job: _Job) -> dict[str, Any]:
    """Describe, as plain values, everything that a search's trials depend on; more trials and images may follow."""
    config, references = job.config, job.evaluator.references
    return {
        "model": sampling_request(job.pipeline, job.default.steps, NeverExit(), config.seed, job.conditions),
        "networks": {name: each.network.fingerprint for name, each in references.items()},
        "real_images": {name: fingerprint([each.real.vectors.tobytes()]) for name, each in references.items()},
        "goal": asdict(config.goal),
        "features": list(config.features),
        "images": list(config.images),
        "seed": config.seed,
    }

"""Plans of our own models: steps, scheduler, spacing, guidance, and the exit layer at each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.policies import NeverExit
from adadiff.sampling import AdaptivePipeline, Conditions, SamplingPlan
from adadiff.sampling.folder import Batch, ImageSampler, Spread, one_by_one, sampling_request
from adadiff.sampling.plan import PlanContext
from adadiff.sampling.schedulers import scheduler_name, spacing_of, times_of
from adadiff.tuning.space import DETERMINISTIC, Space
from adadiff.tuning.tunable import Tunable
from adadiff.utils.errors import InputError
from adadiff.utils.files import weights_checksum


class TunablePipeline(Tunable):
    """A model of our own.

    Args:
        pipeline: The model.
        default: Its default plan with all layers, with scheduler and spacing named; compute is relative to it.
        conditions: Conditions of the images; plans choose the guidance.
        spread: Samples the images, here or on many machines; exits are recorded and plans are timed in this process.
    """

    def __init__(
        self, pipeline: AdaptivePipeline, default: SamplingPlan, conditions: Conditions, spread: Spread = one_by_one
    ) -> None:
        names = pipeline.transformer.config.class_names
        classes = tuple(names[each] if names and isinstance(each, int) else each for each in conditions.classes)
        super().__init__(default, classes, conditions.prompts)
        self.pipeline, self.conditions, self.spread = pipeline, conditions, spread
        self.parts = pipeline.transformer.part_flops

    @property
    def depth(self) -> int:
        return self.pipeline.transformer.depth

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.pipeline.image_shape

    @property
    def prediction_flops(self) -> int:
        return self.parts.full

    def flops(self, plan: SamplingPlan) -> int:
        return plan.flops(self.parts)

    def space(self) -> Space:
        own = scheduler_name(self.pipeline.scheduler)
        return Space.around(
            self.default,
            schedulers=DETERMINISTIC if own in DETERMINISTIC else (own, *DETERMINISTIC),
            guided=self._can_be_guided,
            internal_layers=self.depth - 1,
        )

    def sampled(self, plan: SamplingPlan, seed: int, batches: Iterator[Sequence[int]]) -> Iterator[Batch]:
        conditions = replace(self.conditions, guidance=plan.guidance)
        sampler = ImageSampler(self.pipeline.with_plan(plan), plan.steps, plan.policy, seed, conditions)
        return self.spread(sampler, batches)

    def sampling(self, plan: SamplingPlan, seed: int) -> AdaptiveSampling:
        conditions = replace(self.conditions, guidance=plan.guidance)
        return AdaptiveSampling(self.pipeline.with_plan(plan), plan.steps, conditions, seed)

    def context(self, plan: SamplingPlan) -> PlanContext:
        evaluations = len(times_of(self.pipeline.with_plan(plan).scheduler, plan.steps))
        weights = weights_checksum(Path(self.pipeline.transformer.config.get("_name_or_path", "")))
        return PlanContext.of(plan, weights, self.depth, str(plan.scheduler), evaluations)

    def describe(self, seed: int) -> dict[str, Any]:
        return sampling_request(self.pipeline, self.default.steps, NeverExit(), seed, self.conditions)

    @property
    def _can_be_guided(self) -> bool:
        try:
            self.pipeline.null_conditions(1)
        except InputError:
            return False
        return True


def default_plan(pipeline: AdaptivePipeline, plan: SamplingPlan) -> SamplingPlan:
    """Return a plan with all layers, with the pipeline's scheduler and its spacing named."""
    scheduler = pipeline.scheduler
    return replace(plan.without_exits, scheduler=scheduler_name(scheduler), spacing=spacing_of(scheduler))

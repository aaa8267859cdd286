"""The methods of a comparison of tuned plans: how each spends a budget, beside steps, scheduler and guidance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from optuna.trial import BaseTrial

from adadiff.baselines import Baseline, FirstBlockCaching, SkipCaching
from adadiff.policies import CorrectedScheduleExit, ThresholdExit
from adadiff.runtime import Denoiser, PartFlops
from adadiff.sampling import SamplingPlan
from adadiff.tuning.depth import DepthPlanner
from adadiff.tuning.space import Choices, Space
from adadiff.utils.errors import InputError

LONGEST_INTERVAL = 8  # steps from one with all layers to the next
SMALLEST_TAU, LARGEST_TAU = 0.02, 1.0
SMALLEST_CHANGE, LARGEST_CHANGE = 0.02, 1.0  # thresholds of first-block caching


class PlanMethod(ABC):
    """A way to spend compute, which a search completes to plans.

    Attributes:
        name: Name in configurations.
        title: Name in tables and figures.
        source: Publication or software that it comes from.
        guided_internally: Whether it can be combined with internal guidance.
        for_own_models: Whether it is for models of adadiff's own only, and not for stock pipelines.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    guided_internally: ClassVar[bool] = True
    for_own_models: ClassVar[bool] = False

    def space(self, everything: Space, default: SamplingPlan) -> Space:
        """Return what the search is free to choose; by default everything but the depth, which is all layers.

        Args:
            everything: All that a plan of this model can choose.
            default: The model's default plan.
        """
        layers = everything.internal_layers if self.guided_internally else 0
        return replace(everything, depth=(1.0, 1.0), internal_layers=layers)

    @abstractmethod
    def start(self, share: float, steps: int) -> Mapping[str, Any]:
        """Return parameters of a first trial that spends about this share of `steps` steps with all layers."""

    @abstractmethod
    def plan(self, trial: BaseTrial, choices: Choices, planner: DepthPlanner, most_flops: float) -> SamplingPlan:
        """Complete a trial's choices to a plan.

        Args:
            trial: The trial, which suggests the method's own parameters.
            choices: Steps, scheduler, spacing and guidance.
            planner: Plans the depth by the calibration.
            most_flops: FLOPs that an image may take. What would take more is cut down, where that is known beforehand.
        """


class FullModel(PlanMethod):
    """All layers at the default number of steps, with any guidance and any compute: the reference."""

    name, title, source = "full-model", "full model at its best", "all layers, the default number of steps"

    def space(self, everything: Space, default: SamplingPlan) -> Space:
        """Fix the number of steps."""
        return super().space(everything.with_all_layers(default.steps), default)

    def start(self, share: float, steps: int) -> Mapping[str, Any]:
        """Return all steps, whatever the share."""
        return {"steps": steps}

    def plan(self, trial: BaseTrial, choices: Choices, planner: DepthPlanner, most_flops: float) -> SamplingPlan:
        return choices.with_all_layers


class CalibratedDepth(PlanMethod):
    """Ours: corrected schedules, found by the calibration for a share of the compute."""

    name, title, source = "ours", "ours, corrected schedules", "adadiff tune"

    def space(self, everything: Space, default: SamplingPlan) -> Space:
        """Leave everything free."""
        return everything

    def start(self, share: float, steps: int) -> Mapping[str, Any]:
        """Return all steps at this share of their FLOPs."""
        return {"steps": steps, "depth": share}

    def plan(self, trial: BaseTrial, choices: Choices, planner: DepthPlanner, most_flops: float) -> SamplingPlan:
        return planner.plan(choices, most_flops)


class FewerSteps(PlanMethod):
    """All layers at fewer steps."""

    name, title, source = "fewer-steps", "full model, fewer steps", "the simplest baseline"

    def start(self, share: float, steps: int) -> Mapping[str, Any]:
        """Return this share of the steps."""
        return {"steps": max(1, round(share * steps))}

    def plan(self, trial: BaseTrial, choices: Choices, planner: DepthPlanner, most_flops: float) -> SamplingPlan:
        fewer = (replace(choices.with_all_layers, steps=steps) for steps in range(choices.steps, 0, -1))
        return _first_within(fewer, planner, most_flops)


class Extrapolation(PlanMethod):
    """All layers at every k-th step and at the last; between them the guided prediction is carried on by a polynomial.

    The last step is in full as it is in our plans: carried on, it leaves noise in the colours.
    """

    name, title = "extrapolation", "extrapolation of the prediction"
    source = "TaylorSeer, Liu et al., ICCV 2025, of the whole network's output, orders 0 to 2"

    def start(self, share: float, steps: int) -> Mapping[str, Any]:
        """Return all steps with so many of them in full."""
        return {"steps": steps, "interval": _interval(share)}

    def plan(self, trial: BaseTrial, choices: Choices, planner: DepthPlanner, most_flops: float) -> SamplingPlan:
        interval, order = trial.suggest_int("interval", 2, LONGEST_INTERVAL), trial.suggest_int("order", 0, 2)
        depth, last = planner.model.depth, choices.steps - 1
        weights = ((1.0, float(order > 0), float(order > 1)),) * choices.steps

        def full_at_every(interval: int) -> SamplingPlan:
            layers = tuple(0 if step % interval and step < last else depth for step in range(choices.steps))
            return replace(choices.with_all_layers, policy=CorrectedScheduleExit(layers, weights))

        return _first_within(map(full_at_every, range(interval, LONGEST_INTERVAL + 1)), planner, most_flops)


class SingleThreshold(PlanMethod):
    """The paper's rule: one threshold of uncertainty for all steps and layers."""

    name, title, source = "threshold", "AdaDiff, one threshold", "Tang et al., ECCV 2024"
    for_own_models = True

    def start(self, share: float, steps: int) -> Mapping[str, Any]:
        """Return all steps; what a threshold spends is only known by sampling."""
        return {"steps": steps}

    def plan(self, trial: BaseTrial, choices: Choices, planner: DepthPlanner, most_flops: float) -> SamplingPlan:
        tau = trial.suggest_float("tau", SMALLEST_TAU, LARGEST_TAU, log=True)
        least = trial.suggest_int("min_layer", 1, planner.model.depth - 1)
        return replace(choices.with_all_layers, policy=ThresholdExit(round(tau, 4), min_layer=least))


# ---------------------------------------------------------------------------------------------------------------------
# Caches, which run the network in another way


@dataclass(frozen=True)
class SkipCache:
    """Settings of `SkipCaching`."""

    interval: int
    shallow: int

    def __str__(self) -> str:
        return f"{self.shallow} outer layers on either side, and the others every {self.interval} steps"

    def on(self, model: Any) -> Baseline:
        """Return the denoiser."""
        return SkipCaching(model, self.interval, self.shallow)


@dataclass(frozen=True)
class FirstBlockCache:
    """Settings of `FirstBlockCaching`."""

    threshold: float

    def __str__(self) -> str:
        return f"first-block threshold {self.threshold:g}"

    def on(self, model: Any) -> Baseline:
        """Return the denoiser."""
        return FirstBlockCaching(model, self.threshold)


@dataclass(frozen=True)
class CachedPlan(SamplingPlan):
    """A plan whose network runs with a cache.

    Args:
        cache: The cache's settings.
    """

    cache: SkipCache | FirstBlockCache | None = None

    @classmethod
    def of(cls, choices: Choices, cache: SkipCache | FirstBlockCache) -> CachedPlan:
        """Return the plan of these choices, with all layers where the cache runs them, and this cache."""
        return cls(**vars(choices.with_all_layers), cache=cache)

    def denoiser(self, model: Denoiser) -> Denoiser:
        """Return the model with the cache."""
        return model if self.cache is None else self.cache.on(model)

    def flops(self, parts: PartFlops, evaluations: int | None = None) -> int:
        """Raise InputError: caches decide while they sample."""
        raise InputError("the compute of a cache is only known by sampling")

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain values, with the cache's settings."""
        return {**super().describe(), "cache": None if self.cache is None else asdict(self.cache)}


class SkipCacheMethod(PlanMethod):
    """Skip caching: the outer layers run at every step, the others at every k-th."""

    name, title, source = "skip-caching", "skip caching", "DeepCache, Ma et al., CVPR 2024"
    guided_internally, for_own_models = False, True

    def start(self, share: float, steps: int) -> Mapping[str, Any]:
        """Return all steps with so many of them in full."""
        return {"steps": steps, "interval": _interval(share), "shallow": 1}

    def plan(self, trial: BaseTrial, choices: Choices, planner: DepthPlanner, most_flops: float) -> SamplingPlan:
        shallow = trial.suggest_int("shallow", 1, min(2, planner.model.depth // 2))
        return CachedPlan.of(choices, SkipCache(trial.suggest_int("interval", 2, LONGEST_INTERVAL), shallow))


class FirstBlockCacheMethod(PlanMethod):
    """First-block caching: the layers after the first are skipped while its output changes little."""

    name, title, source = "first-block-caching", "first-block caching", "ParaAttention"
    guided_internally, for_own_models = False, True

    def start(self, share: float, steps: int) -> Mapping[str, Any]:
        """Return all steps; what a threshold spends is only known by sampling."""
        return {"steps": steps}

    def plan(self, trial: BaseTrial, choices: Choices, planner: DepthPlanner, most_flops: float) -> SamplingPlan:
        threshold = trial.suggest_float("threshold", SMALLEST_CHANGE, LARGEST_CHANGE, log=True)
        return CachedPlan.of(choices, FirstBlockCache(round(threshold, 4)))


def _first_within(plans: Iterable[SamplingPlan], planner: DepthPlanner, most_flops: float) -> SamplingPlan:
    """Return the first plan that takes at most so many FLOPs, or the last one."""
    for plan in plans:
        if planner.model.flops(plan) <= most_flops:
            break
    return plan


def _interval(share: float) -> int:
    return min(max(2, round(1 / share)), LONGEST_INTERVAL)


METHODS: dict[str, PlanMethod] = {
    method.name: method
    for method in (
        FullModel(),
        CalibratedDepth(),
        FewerSteps(),
        Extrapolation(),
        SkipCacheMethod(),
        FirstBlockCacheMethod(),
        SingleThreshold(),
    )
}

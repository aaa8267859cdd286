"""The search space: what a plan may choose, with ranges that follow from the model and its default settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import BaseTrial
from typing_extensions import Self

from adadiff.sampling import AdaptivePipeline, Guidance, InternalGuidance
from adadiff.sampling.plan import SPACINGS, SamplingPlan
from adadiff.sampling.schedulers import scheduler_name
from adadiff.utils.errors import InputError

DETERMINISTIC = ("ddim", "dpm-solver++", "unipc")  # others add noise of their own, which no two plans have in common
LEAST_STEPS = 4
MORE_STEPS = 1.5  # most steps, over the default number; highest scale, over the default one
HIGHEST_SCALE = 8.0  # or the default scale times `MORE_STEPS`, if that is higher
LEAST_DEPTH = 0.15  # least share of the FLOPs of all layers
LARGEST_WEIGHT = 1.5  # of internal guidance
SCALE_GRID, WEIGHT_GRID, INTERVAL_GRID = 0.5, 0.25, 0.05
START, END = (0.0, 0.5), (0.55, 1.0)  # of an interval of the steps


@dataclass(frozen=True)
class Choices:
    """One point of the space.

    Args:
        steps: Number of sampling steps.
        scheduler: Short name of the scheduler.
        spacing: Spacing of its time steps.
        guidance: Classifier-free and internal guidance.
        depth: FLOPs over those of all layers at these steps and this guidance, in (0, 1].
    """

    steps: int
    scheduler: str
    spacing: str | None
    guidance: Guidance
    depth: float = 1.0

    @property
    def with_all_layers(self) -> SamplingPlan:
        """The plan that runs all layers."""
        return SamplingPlan(self.steps, guidance=self.guidance, scheduler=self.scheduler, spacing=self.spacing)


@dataclass(frozen=True)
class Space:
    """The ranges that are searched; a range of a single value fixes it.

    Args:
        steps: Least and most steps.
        schedulers: Short names of schedulers.
        depth: Least and largest share of the FLOPs of all layers.
        scale: Least and highest guidance scale; None for a model that cannot be guided.
        internal_layers: Layers 1 to this may guide internally; 0 for no internal guidance.
        spacings: Spacings of the time steps.
    """

    steps: tuple[int, int]
    schedulers: tuple[str, ...]
    depth: tuple[float, float] = (LEAST_DEPTH, 1.0)
    scale: tuple[float, float] | None = None
    internal_layers: int = 0
    spacings: tuple[str, ...] = SPACINGS

    @classmethod
    def of(cls, pipeline: AdaptivePipeline, default: SamplingPlan) -> Self:
        """Derive the space from a model and its default plan."""
        own = scheduler_name(pipeline.scheduler)
        highest = max(HIGHEST_SCALE, MORE_STEPS * default.guidance.scale)
        return cls(
            steps=(min(LEAST_STEPS, default.steps), round(MORE_STEPS * default.steps)),
            schedulers=DETERMINISTIC if own in DETERMINISTIC else (own, *DETERMINISTIC),
            scale=(1.0, highest // SCALE_GRID * SCALE_GRID) if _can_be_guided(pipeline) else None,
            internal_layers=pipeline.transformer.depth - 1,
        )

    def with_all_layers(self, steps: int) -> Self:
        """Return the space of the full model: all layers at this number of steps, everything else as free."""
        return replace(self, steps=(steps, steps), depth=(1.0, 1.0))

    def suggest(self, trial: BaseTrial) -> Choices:
        """Let a trial choose a point."""
        steps = trial.suggest_int("steps", *self.steps)
        return Choices(
            steps,
            trial.suggest_categorical("scheduler", self.schedulers),
            trial.suggest_categorical("spacing", self.spacings),
            self._guidance(trial, steps),
            trial.suggest_float("depth", *self.depth),
        )

    def starts(self, default: SamplingPlan, budget: float | None) -> list[dict[str, Any]]:
        """Return the parameters of a search's first trials; what they leave out is chosen at random.

        They are the default plan; as few steps with all layers as the budget takes; and the default plan guided in the
        middle of the sampling only, without and with internal guidance.

        Args:
            default: The default plan.
            budget: FLOPs over the default plan's, or None.
        """
        own: dict[str, Any] = {"steps": default.steps, "depth": self.depth[1], "scheduler": default.scheduler}
        own |= {"spacing": default.spacing} if default.spacing in self.spacings else {}
        middle: dict[str, Any] = {}
        if self.internal_layers:
            own["internal_weight"] = 0.0
        if self.scale is not None:
            scale = round(default.guidance.scale / SCALE_GRID) * SCALE_GRID
            own |= {"scale": scale, "start": START[0], "end": END[1]}
            middle = {"start": 0.25, "end": 0.75}
        fewer = max(self.steps[0], int((budget or 0.5) * default.steps))
        starts = [own, {**own, "steps": min(fewer, self.steps[1])}, {**own, **middle}]
        if self.internal_layers:
            starts.append({**own, **middle, "internal_weight": 0.5})
        return [start for place, start in enumerate(starts) if start not in starts[:place]]

    def _guidance(self, trial: BaseTrial, steps: int) -> Guidance:
        internal, guidance = self._internal(trial, steps), Guidance()
        if self.scale is not None:
            scale = trial.suggest_float("scale", *self.scale, step=SCALE_GRID)
            guidance = Guidance(scale, _interval(trial, ""))
            if not any(guidance.applies(step, steps) for step in range(steps)):
                guidance = Guidance()  # a plan never states a scale that no step is guided by
        return replace(guidance, internal=internal)

    def _internal(self, trial: BaseTrial, steps: int) -> InternalGuidance | None:
        if not self.internal_layers:
            return None
        weight = trial.suggest_float("internal_weight", 0.0, LARGEST_WEIGHT, step=WEIGHT_GRID)
        layer = trial.suggest_int("internal_layer", 1, self.internal_layers)
        start, end = _interval(trial, "internal_")
        applies = any(start <= step / steps < end for step in range(steps))
        return InternalGuidance(layer, weight, (start, end)) if weight > 0 and applies else None


def _interval(trial: BaseTrial, prefix: str) -> tuple[float, float]:
    """Let a trial choose an interval of the steps, on a grid."""
    start = trial.suggest_float(f"{prefix}start", *START, step=INTERVAL_GRID)
    end = trial.suggest_float(f"{prefix}end", *END, step=INTERVAL_GRID)
    return round(start, 2), round(end, 2)


def _can_be_guided(pipeline: AdaptivePipeline) -> bool:
    try:
        pipeline.null_conditions(1)
    except InputError:
        return False
    return True

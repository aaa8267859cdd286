"""The search space: what a plan may choose, with ranges that follow from the model and its default settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import BaseTrial
from typing_extensions import Self

from adadiff.sampling import Guidance, InternalGuidance
from adadiff.sampling.plan import SPACINGS, SamplingPlan

DETERMINISTIC = ("ddim", "dpm-solver++", "unipc")  # others add noise of their own, which no two plans have in common
LEAST_STEPS = 4
MORE_STEPS = 1.5  # most steps, over the default number; highest scale, over the default one
HIGHEST_SCALE = 8.0  # or the default scale times `MORE_STEPS`, if that is higher
LEAST_DEPTH = 0.15  # least share of the FLOPs of all layers
LARGEST_WEIGHT = 1.5  # of internal guidance
LOWER_SCALES = (0.75, 0.5)  # of a search's first trials, over the default scale
UNKNOWN_BUDGET = 0.5  # share of the compute that the first trials of a search without a budget spend
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
        spacings: Spacings of the time steps; none for the scheduler's own.
        intervals: Whether guidance may leave steps out.
    """

    steps: tuple[int, int]
    schedulers: tuple[str, ...]
    depth: tuple[float, float] = (LEAST_DEPTH, 1.0)
    scale: tuple[float, float] | None = None
    internal_layers: int = 0
    spacings: tuple[str, ...] = SPACINGS
    intervals: bool = True

    @classmethod
    def around(cls, default: SamplingPlan, guided: bool, **others: Any) -> Self:
        """Derive the ranges of steps and guidance scales from a default plan.

        Args:
            default: The plan.
            guided: Whether the model can be guided.
            others: The other ranges, as the space takes them.
        """
        highest = max(HIGHEST_SCALE, MORE_STEPS * default.guidance.scale)
        return cls(
            steps=(min(LEAST_STEPS, default.steps), round(MORE_STEPS * default.steps)),
            scale=(1.0, highest // SCALE_GRID * SCALE_GRID) if guided else None,
            **others,
        )

    def with_all_layers(self, steps: int) -> Self:
        """Return the space of the full model: all layers at this number of steps, everything else as free."""
        return replace(self, steps=(steps, steps), depth=(1.0, 1.0))

    def dearest(self, default: SamplingPlan) -> SamplingPlan:
        """Return the plan that costs most, but for internal guidance: the most steps, guided, with all layers."""
        guidance = default.guidance if self.scale is None else Guidance(self.scale[1])
        return replace(default, steps=self.steps[1], guidance=guidance)

    def suggest(self, trial: BaseTrial) -> Choices:
        """Let a trial choose a point."""
        steps = trial.suggest_int("steps", *self.steps)
        return Choices(
            steps,
            trial.suggest_categorical("scheduler", self.schedulers),
            trial.suggest_categorical("spacing", self.spacings) if self.spacings else None,
            self._guidance(trial, steps),
            trial.suggest_float("depth", *self.depth),
        )

    def starts(
        self, default: SamplingPlan, budget: float | None, full: Sequence[SamplingPlan] = ()
    ) -> list[dict[str, Any]]:
        """Return the parameters of a search's first trials; what they leave out is chosen at random.

        They are the best full models that are known, with less depth at their steps and at the most steps, and with
        fewer steps; the first of them at the most steps and the next lower scale, since more steps can leave room under
        a floor; the default plan; as few of its steps with all layers as the budget takes; the default plan at
        lower scales; and the default plan guided in the middle of the sampling only, without and with internal
        guidance.

        Args:
            default: The default plan.
            budget: FLOPs over the default plan's, which depth is cut down to; None for the whole front.
            full: Plans with all layers that are known to be good.
        """
        share = budget or UNKNOWN_BUDGET
        depth = {} if budget else {"depth": max(self.depth[0], share)}
        own = self.parameters(default)
        starts: list[dict[str, Any]] = []
        for plan in full:
            deep = {**self.parameters(plan), **depth}
            starts += [deep, {**deep, "steps": self.steps[1]}, self._fewer(plan, share)]
        if full and self.scale is not None:
            lower = max(self.scale[0], _on_grid(full[0].guidance.scale) - SCALE_GRID)
            starts.insert(2, {**starts[1], "scale": lower})
        starts += [own, self._fewer(default, share)]
        if self.scale is not None:
            scales = [max(self.scale[0], _on_grid(default.guidance.scale * part)) for part in LOWER_SCALES]
            starts += [{**own, "scale": scale} for scale in scales]
            middle = {**own, "start": 0.25, "end": 0.75}
            starts += [middle] if self.intervals else []
            if self.internal_layers:
                starts.append({**middle, "internal_weight": 0.5})
        return [start for place, start in enumerate(starts) if start not in starts[:place]]

    def parameters(self, plan: SamplingPlan) -> dict[str, Any]:
        """Return what a trial chooses for a plan with all layers; what no grid or range has is rounded, or left out."""
        chosen: dict[str, Any] = {"steps": plan.steps, "depth": self.depth[1], "scheduler": plan.scheduler}
        chosen |= {"spacing": plan.spacing} if plan.spacing in self.spacings else {}
        guidance, internal = plan.guidance, plan.guidance.internal
        if self.scale is not None:
            chosen["scale"] = min(self.scale[1], _on_grid(guidance.scale))
            chosen |= _interval_parameters("", guidance.interval) if self.intervals else {}
        if self.internal_layers:
            chosen["internal_weight"] = 0.0 if internal is None else internal.weight
            if internal is not None:
                chosen["internal_layer"] = internal.layer
                chosen |= _interval_parameters("internal_", internal.interval)
        return chosen

    def _fewer(self, plan: SamplingPlan, share: float) -> dict[str, Any]:
        steps = min(max(self.steps[0], int(share * plan.steps)), self.steps[1])
        return {**self.parameters(plan), "steps": steps}

    def _guidance(self, trial: BaseTrial, steps: int) -> Guidance:
        internal, guidance = self._internal(trial, steps), Guidance()
        if self.scale is not None:
            scale = trial.suggest_float("scale", *self.scale, step=SCALE_GRID)
            guidance = Guidance(scale, _interval(trial, "") if self.intervals else (0.0, 1.0))
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


def _interval_parameters(prefix: str, interval: tuple[float, float]) -> dict[str, float]:
    """Return what `_interval` chooses for an interval, or what comes nearest to it."""
    start, end = interval
    return {f"{prefix}start": min(max(start, START[0]), START[1]), f"{prefix}end": min(max(end, END[0]), END[1])}


def _on_grid(scale: float) -> float:
    return round(scale / SCALE_GRID) * SCALE_GRID

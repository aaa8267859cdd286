"""The sampling plan: steps, scheduler, guidance and exits in one object, stored with a model as exit_policy.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from pydantic import TypeAdapter

from adadiff.policies import ExitPolicy, NeverExit
from adadiff.policies.stored import CalibrationContext, StoredPolicy, policy_from
from adadiff.runtime import Denoiser, PartFlops, planned_flops
from adadiff.sampling.guidance import Guidance, InternalGuidance
from adadiff.utils.errors import InputError
from adadiff.utils.ranges import as_int

SPACINGS = ("leading", "linspace", "trailing")


@dataclass(frozen=True)
class SamplingPlan:
    """Everything a compute budget can be spent on: steps, guidance, and the exit layer at each step.

    Args:
        steps: Number of sampling steps.
        policy: The exit policy.
        guidance: Guidance scale, guided steps and internal guidance.
        scheduler: Name of the scheduler, such as dpm-solver++; None for the pipeline's.
        spacing: Spacing of the time steps, leading, linspace or trailing; None for the scheduler's.

    Raises:
        InputError: If a value is out of range.

    Examples:
        >>> from adadiff import AdaDiffPipeline
        >>> from adadiff.policies import CorrectedScheduleExit
        >>> from adadiff.sampling import Guidance, SamplingPlan
        >>> parts = AdaDiffPipeline.from_pretrained("cifar10-class-xs").transformer.part_flops
        >>> full = SamplingPlan(steps=4, guidance=Guidance(scale=6))
        >>> plan = SamplingPlan(4, CorrectedScheduleExit((9, 0, 9, 1)), Guidance(scale=6, interval=(0, 0.5)))
        >>> f"{plan.flops(parts) / full.flops(parts):.2f}"
        '0.39'
    """

    steps: int
    policy: ExitPolicy = field(default_factory=NeverExit)
    guidance: Guidance = field(default_factory=Guidance)
    scheduler: str | None = None
    spacing: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", as_int(self.steps, "the number of steps"))
        if self.spacing not in (None, *SPACINGS):
            raise InputError(f"the spacing of time steps is {self.spacing!r}: choose {', '.join(SPACINGS)}")

    def flops(self, parts: PartFlops, evaluations: int | None = None) -> int:
        """Return the FLOPs of one image, exactly.

        Args:
            parts: FLOPs of the model's parts.
            evaluations: Evaluations of the model, where the scheduler does not make exactly one per step.

        Raises:
            InputError: If the policy's exits depend on the samples.
        """
        count = self.steps if evaluations is None else evaluations
        internal, every = self.guidance.internal, torch.arange(count)
        read = [0] * count if internal is None else ((internal.weights(every, count) > 0) * internal.layer).tolist()
        guided = [self.guidance.applies(step, count) for step in range(count)]
        return sum(planned_flops(self.policy, parts, guided, self.guidance.tied, read))

    def denoiser(self, model: Denoiser) -> Denoiser:
        """Return what predicts the steps: the model itself, unless a subclass runs it in another way."""
        return model

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain values, of which `plan_from` makes it again."""
        return {
            "steps": self.steps,
            "scheduler": self.scheduler,
            "spacing": self.spacing,
            "guidance": asdict(self.guidance),
            "policy": self.policy.describe(),
        }

    @property
    def without_exits(self) -> SamplingPlan:
        """The same plan with all layers at every step."""
        return replace(self, policy=NeverExit())


def plan_from(description: Mapping[str, Any]) -> SamplingPlan:
    """Build a plan from plain values, as `SamplingPlan.describe` returns them.

    Raises:
        InputError: If a value is out of range, or the policy is unknown.
        ValidationError: If a value is missing or of another type.
    """
    values = dict(description)
    return SamplingPlan(
        values["steps"],
        policy_from(values["policy"]),
        TypeAdapter(Guidance).validate_python(values["guidance"]),
        values.get("scheduler"),
        values.get("spacing"),
    )


@dataclass(frozen=True)
class PlanContext(CalibrationContext):
    """The model and the sampling settings of a stored plan: a `SamplingPlan` without its policy.

    Args:
        guidance_interval: The steps that are guided, as fractions [start, end) of all steps.
        internal_guidance: Internal guidance, or None.
        spacing: Spacing of the time steps; None for the scheduler's.
        tied_exits: Whether the two predictions of a guided pair exit together.
    """

    guidance_interval: tuple[float, float] = (0.0, 1.0)
    internal_guidance: InternalGuidance | None = None
    spacing: str | None = None
    tied_exits: bool = True

    @classmethod
    def of(cls, plan: SamplingPlan, weights: str | None, depth: int, scheduler: str, evaluations: int) -> PlanContext:
        """Return the context of a plan for a model of `depth` layers and a scheduler of that name."""
        guidance = plan.guidance
        return cls(
            weights,
            depth,
            scheduler,
            plan.steps,
            guidance.scale,
            evaluations,
            guidance.interval,
            guidance.internal,
            plan.spacing,
            guidance.tied,
        )

    @property
    def guidance(self) -> Guidance:
        """The guidance."""
        return Guidance(self.guidance_scale, self.guidance_interval, self.tied_exits, self.internal_guidance)

    def stored(self, policy: ExitPolicy, goal: Mapping[str, float], found: Mapping[str, Any]) -> StoredPlan:
        return StoredPlan(policy, self, goal, found)


@dataclass(frozen=True)
class StoredPlan(StoredPolicy):
    """A plan with the goal it was searched for and its measured results, stored as a model folder's exit_policy.json.

    Args:
        policy: The exit policy.
        calibrated_for: The model and the plan's other settings.
        goal: The goal, such as `compute`, with its value.
        found: Measurements on samples that were not used to choose the plan; shown to users, never computed with.
    """

    context: ClassVar[type[CalibrationContext]] = PlanContext
    calibrated_for: PlanContext

    @property
    def plan(self) -> SamplingPlan:
        """The plan."""
        made_for = self.calibrated_for
        return SamplingPlan(made_for.steps, self.policy, made_for.guidance, made_for.scheduler, made_for.spacing)

    def check(self) -> None:
        super().check()
        depth, internal = self.calibrated_for.depth, self.plan.guidance.internal
        if internal is not None and internal.layer >= depth:
            raise InputError(f"internal guidance is by layer {internal.layer} of {depth}: it must be below the last")

    def differences_of(self, plan: SamplingPlan) -> list[str]:
        """List, as short phrases, the settings of a plan, policy apart, that differ from the stored plan's."""
        own, differences = self.plan, self.differences(str(plan.scheduler), plan.steps, plan.guidance.scale)
        pairs = (
            ("guidance interval", plan.guidance.interval, own.guidance.interval),
            ("internal guidance", plan.guidance.internal, own.guidance.internal),
            ("tied exits", plan.guidance.tied, own.guidance.tied),
            ("spacing", plan.spacing, own.spacing),
        )
        return differences + [
            f"{name} {shown} in place of {wanted}" for name, shown, wanted in pairs if shown != wanted
        ]

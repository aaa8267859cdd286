"""Sampling settings: the caller's choices, completed by those of the model's folder.

The pipeline, the command line and evaluation all call `resolve`, so that the same choices give the same images in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffusers import SchedulerMixin
from typing_extensions import Self

from adadiff.policies import ExitPolicy, NeverExit, ThresholdExit
from adadiff.policies.stored import EXIT_POLICY, other_policies
from adadiff.sampling.defaults import SAMPLING, SamplingDefaults
from adadiff.sampling.guidance import Guidance
from adadiff.sampling.plan import SamplingPlan, StoredPlan
from adadiff.sampling.schedulers import scheduler_name, spacing_of, times_of
from adadiff.utils.errors import InputError
from adadiff.utils.files import weights_checksum
from adadiff.utils.ranges import as_int, shown


@dataclass(frozen=True)
class FolderSettings:
    """The sampling settings stored in a model's folder.

    Args:
        folder: The folder; None for a pipeline that was built from its parts, which has no settings.
        defaults: Contents of sampling.json, or None if there is no such file.
        stored: Contents of exit_policy.json, or None if there is no such file.
        others: Plans for other budgets, by the names of their files beside it.
    """

    folder: Path | None = None
    defaults: SamplingDefaults | None = None
    stored: StoredPlan | None = None
    others: Mapping[str, StoredPlan] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, policy: bool = True) -> Self:
        """Read the settings of a model folder.

        Args:
            folder: The folder; without either file it has no settings.
            policy: Whether to read exit_policy.json and the plans for other budgets too.

        Raises:
            InputError: If a file is damaged, has values out of range, or belongs to other weights.
        """
        defaults = SamplingDefaults.load(folder) if (folder / SAMPLING).is_file() else None
        stored = StoredPlan.load(folder) if policy and (folder / EXIT_POLICY).is_file() else None
        others = {name: StoredPlan.load(folder, name) for name in other_policies(folder)} if policy else {}
        return cls(folder.absolute(), defaults, stored, others)

    def with_policies_of(self, folder: Path, model: Path) -> Self:
        """Return the settings with the policies of another folder in place of the model's own.

        Args:
            folder: The other folder.
            model: The model's folder.

        Raises:
            InputError: If it holds no exit_policy.json, or a damaged one, or one for other weights.
        """
        names = (EXIT_POLICY, *other_policies(folder))
        stored = {name: StoredPlan.load(folder, name, model) for name in names}
        return replace(self, stored=stored.pop(EXIT_POLICY), others=stored)

    def require_depth(self, depth: int) -> None:
        """Raise InputError if a policy is for a model of another number of layers, which no checksum told."""
        for name, plan in self._policies.items():
            if plan.calibrated_for.depth != depth:
                made_for = plan.calibrated_for.depth
                raise InputError(f"{name} is for a model of {made_for} layers, and this one has {depth}: name another")

    def save(self, folder: Path) -> None:
        """Write the settings to another model folder, whose weights may be stored in another precision."""
        if self.defaults is not None:
            self.defaults.save(folder)
        for name, plan in self._policies.items():
            made_for = replace(plan.calibrated_for, weights=weights_checksum(folder / "transformer"))
            replace(plan, calibrated_for=made_for).save(folder, name)

    @property
    def _policies(self) -> dict[str, StoredPlan]:
        """All policies, by the names of their files."""
        return {**({} if self.stored is None else {EXIT_POLICY: self.stored}), **self.others}

    @property
    def scheduler(self) -> str | None:
        """The name of the scheduler to sample with; None for the scheduler saved in the folder."""
        return None if self.defaults is None and self.stored is None else self.sampling.scheduler

    @property
    def sampling(self) -> SamplingDefaults:
        """The defaults for settings that the caller does not choose: a calibrated policy's, then sampling.json's."""
        defaults = self.defaults or SamplingDefaults()
        if self.stored is None:
            return defaults
        made_for = self.stored.calibrated_for
        return defaults.changed(
            scheduler=made_for.scheduler, steps=made_for.steps, guidance_scale=made_for.guidance_scale
        )

    @property
    def guidance(self) -> Guidance:
        """The guidance of a run for which the caller chooses none."""
        return Guidance(self.sampling.guidance_scale) if self.stored is None else self.stored.plan.guidance

    @property
    def spacing(self) -> str | None:
        """The spacing of time steps; None for that of the scheduler saved in the folder."""
        return None if self.stored is None else self.stored.plan.spacing

    def without_exits(self) -> Self:
        """Return the settings without policies and threshold, which are only valid for the folder's own weights."""
        if self.scheduler is None:
            return self
        return replace(self, defaults=replace(self.sampling, tau=0.0, min_layer=1), stored=None, others={})


@dataclass(frozen=True)
class ResolvedPlan(SamplingPlan):
    """The plan of a sampling run, without defaults left open.

    Args:
        differences: Differences from the settings that the policy was calibrated for, as text.
    """

    differences: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """The one-line warning that a calibrated policy is used with other settings, or None."""
        if not self.differences:
            return None
        return (
            f"the calibrated exit policy is used with {', '.join(self.differences)}, for which its compute and error "
            f"are unknown: calibrate again to measure them"
        )


def resolve(
    own: FolderSettings,
    scheduler: SchedulerMixin,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    tau: Any = None,
    policy: ExitPolicy | None = None,
    min_layer: int | None = None,
    guidance_interval: tuple[float, float] | None = None,
    tied_exits: bool | None = None,
    guidance: Guidance | None = None,
) -> ResolvedPlan:
    """Resolve the plan of a sampling run: the caller's choices, and the model folder's for choices that are None.

    A calibrated policy is stretched if it is used with another number of steps than it was calibrated for.

    Args:
        own: The settings of the model's folder.
        scheduler: The scheduler to sample with.
        num_inference_steps: Number of sampling steps.
        guidance_scale: Scale of classifier-free guidance; 1 means no guidance.
        tau: Exit threshold in [0, 1], one number or one per step, in place of a calibrated policy; 0 runs all layers.
        policy: The exit policy, in place of the folder's policy or threshold.
        min_layer: First layer after which a sample may exit, with `tau` or the folder's threshold.
        guidance_interval: The steps that are guided, as fractions [start, end) of all steps.
        tied_exits: Whether the two predictions of a guided pair exit together.
        guidance: All of the guidance, in place of the three settings above.

    Raises:
        InputError: If both `tau` and `policy` are given, or an argument has the wrong type or is out of range.
    """
    sampling = own.sampling
    steps = sampling.steps if num_inference_steps is None else as_int(num_inference_steps, "the number of steps")
    parts: dict[str, Any] = {"scale": guidance_scale, "interval": guidance_interval, "tied": tied_exits}
    chosen = {name: value for name, value in parts.items() if value is not None}
    if guidance is not None and chosen:
        raise InputError("give either guidance, or its scale, interval and tied_exits, not both")
    guidance = replace(own.guidance if guidance is None else guidance, **chosen)
    named: dict[str, Any] = {"scheduler": scheduler_name(scheduler), "spacing": own.spacing and spacing_of(scheduler)}
    if policy is not None:
        if tau is not None:
            raise InputError("give either tau or a policy, not both")
        if not isinstance(policy, ExitPolicy):
            raise InputError(f"the policy is {shown(policy)}: give an ExitPolicy, or a threshold as tau")
        return ResolvedPlan(steps, policy, guidance, **named)
    if own.stored is None or tau is not None or min_layer is not None:
        threshold = ThresholdExit(
            sampling.tau if tau is None else tau,
            min_layer=sampling.min_layer if min_layer is None else min_layer,
        )
        return ResolvedPlan(steps, NeverExit() if threshold.tau == 0 else threshold, guidance, **named)
    stretched = own.stored.for_steps(len(times_of(scheduler, steps)))
    plan = ResolvedPlan(steps, stretched, guidance, **named)
    return replace(plan, differences=tuple(own.stored.differences_of(plan)))

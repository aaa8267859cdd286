"""A model's plans by their compute, over the full model's: all layers at the default number of steps and guidance."""

from __future__ import annotations

import copy
from dataclasses import replace

from adadiff.sampling.pipeline import AdaptivePipeline
from adadiff.sampling.plan import StoredPlan
from adadiff.sampling.schedulers import scheduler_like, scheduler_name, times_of
from adadiff.sampling.settings import FolderSettings
from adadiff.utils.errors import InputError

TOLERANCE = 0.005  # 0.55 names a plan that takes 0.553


class Budgets:
    """The plans of a model's folder by their compute, the full model's included.

    The full model samples as the folder's sampling.json says, with all layers; in a folder without that file, as its
    exit_policy.json says but for the exits. Everything that is said of compute is over the FLOPs of its image.

    Args:
        pipeline: The model, with the settings of its folder.

    Attributes:
        full: The model that samples by its default plan with all layers.
        full_flops: FLOPs of an image of it.
        plans: The model that samples by each plan, by the plan's name: its compute in hundredths; the full model at 1.
        computes: The compute of each plan, by its name, rising.
        own: The name of the folder's default plan; None where its compute is not known, or not below the full model's.

    Examples:
        >>> from adadiff import AdaDiffPipeline
        >>> budgets = Budgets(AdaDiffPipeline.from_pretrained("digits"))
        >>> list(budgets.plans), budgets.named(0.6)
        ([0.45, 1.0], 0.45)
    """

    def __init__(self, pipeline: AdaptivePipeline) -> None:
        self._pipeline, own = pipeline, pipeline.own_settings
        self._saved_scheduler = copy.deepcopy(pipeline.saved_scheduler)  # samplings that run elsewhere change the other
        self.full = self._full()
        plan = self.full.sampling_settings()
        self.full_flops = plan.flops(pipeline.denoiser.part_flops, len(times_of(self.full.scheduler, plan.steps)))
        stored = ([] if own.stored is None else [own.stored]) + list(own.others.values())
        measured = [(compute, each) for each in stored if (compute := self.compute_of(each)) is not None]
        below = sorted(((c, each) for c, each in measured if round(c, 2) < 1), key=lambda pair: pair[0])
        self.plans = {round(compute, 2): self._by(each) for compute, each in below} | {1.0: self.full}
        self.computes = {round(compute, 2): compute for compute, _ in below} | {1.0: 1.0}
        self.own = next((round(compute, 2) for compute, each in below if each is own.stored), None)

    def compute_of(self, stored: StoredPlan) -> float | None:
        """Return a stored plan's FLOPs over the full model's; None where they are neither known nor measured."""
        parts, evaluations = self._pipeline.denoiser.part_flops, stored.calibrated_for.policy_steps
        try:
            return stored.plan.flops(parts, evaluations) / self.full_flops
        except InputError:  # the samples decide; the calibration measured it, over all layers at the plan's steps
            measured = stored.found.get("compute")
        return measured and measured * stored.plan.without_exits.flops(parts, evaluations) / self.full_flops

    def named(self, budget: float) -> float:
        """Return the name of the most expensive plan within a budget.

        Args:
            budget: FLOPs over those of the full model.

        Raises:
            InputError: If every plan takes more; the message names the least.
        """
        names = [name for name in self.plans if name <= budget + TOLERANCE]
        if not names:
            least = min(self.plans)
            more = "; make others with adadiff calibrate" if least == 1 else ""
            raise InputError(
                f"no plan of the model takes at most {budget:g} of the full model's compute: the least on offer is "
                f"{least:g}{more}"
            )
        return max(names)

    def _by(self, stored: StoredPlan) -> AdaptivePipeline:
        """Return the model that samples by a stored plan; of the scheduler, what the plan leaves open is as saved."""
        plain = self._pipeline.with_parts(scheduler=self._saved_scheduler)
        planned = plain.with_plan(stored.plan)
        planned.own_settings = replace(self._pipeline.own_settings, stored=stored)
        return planned

    def _full(self) -> AdaptivePipeline:
        """Return the model that samples with all layers by default, as its folder says."""
        own = self._pipeline.own_settings
        if own.defaults is None:
            settings, scheduler = own, self._pipeline.scheduler
        else:
            settings, scheduler = FolderSettings(own.folder, own.defaults), self._saved_scheduler
            if own.defaults.scheduler != scheduler_name(scheduler):
                scheduler = scheduler_like(own.defaults.scheduler, scheduler)
        full = self._pipeline.with_parts(scheduler=scheduler)
        full.own_settings = settings.without_exits()
        return full

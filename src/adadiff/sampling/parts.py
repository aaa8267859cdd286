"""A model's parts as a diffusers pipeline: loaded from a folder and saved to one, with the settings kept there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin
from typing_extensions import Self

from adadiff.conditioning import TextEncoder
from adadiff.exits import AdaptiveModel
from adadiff.policies import ExitPolicy
from adadiff.policies.stored import policy_folder
from adadiff.runtime import Denoiser
from adadiff.sampling.guidance import Guidance
from adadiff.sampling.schedulers import scheduler_like, scheduler_name, times_of
from adadiff.sampling.settings import FolderSettings, ResolvedPlan, resolve
from adadiff.utils.errors import InputError, one_line, suggestion
from adadiff.utils.files import is_stock, model_folder, packaged_models, write_checksums
from adadiff.utils.verified import holds_weights_of, require_finite, verify_parts

logger = logging.getLogger(__name__)


class ModelParts(DiffusionPipeline):
    """What an adaptive model samples with, and what its folder says of sampling it.

    Args:
        transformer: The denoiser.
        scheduler: Any diffusers scheduler for the variance-preserving forward process.
        text_encoder: For a model that takes text.
        vae: For a model of latents.

    Attributes:
        own_settings: What the folder says that the pipeline was loaded from; nothing where it was built from parts.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "vae"]  # noqa: RUF012 - diffusers' own
    scheduler: SchedulerMixin

    def __init__(
        self,
        transformer: AdaptiveModel,
        scheduler: SchedulerMixin,
        text_encoder: TextEncoder | None = None,
        vae: AutoencoderKL | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, text_encoder=text_encoder, vae=vae)
        self.own_settings = FolderSettings()
        self._saved_scheduler, self._own_scheduler = scheduler, scheduler
        self._warned: set[str] = set()
        self._denoiser: Denoiser | None = None

    @classmethod
    def _get_signature_types(cls) -> dict[str, tuple[type, ...]]:
        """Resolve the annotations of the parts, which diffusers before 0.36 cannot read as strings."""
        hints = get_type_hints(cls.__init__)
        return {name: get_args(hint) or (hint,) for name, hint in hints.items() if name != "return"}

    @property
    def denoiser(self) -> Denoiser:
        """What predicts the steps: the transformer, or the baseline that runs it in another way."""
        return self.transformer if self._denoiser is None else self._denoiser

    @property
    def saved_scheduler(self) -> SchedulerMixin:
        """The scheduler among the folder's parts, in the place of which its settings may name another."""
        return self._saved_scheduler

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        own_settings: bool = True,
        policy: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a model folder, as `save_pretrained` and the training make it, a packaged model by name, or a hub model.

        Args:
            pretrained_model_name_or_path: The folder or name.
            own_settings: Whether to sample as the folder's sampling.json and exit_policy.json say; else the parts alone
                are loaded, with the scheduler saved among them. A hub model's two files are not fetched.
            policy: Folder whose exit_policy.json, and plans for other budgets, take the place of the model's own, as
                `adadiff tune --out` makes it.
            kwargs: As diffusers takes them; `scheduler` may also be a name, such as "dpm-solver++".

        Raises:
            InputError: If there is no such model, its files are damaged or do not fit together, or the policy is for
                other weights (of a hub model, another depth).

        Examples:
            >>> from adadiff import AdaDiffPipeline
            >>> pipe = AdaDiffPipeline.from_pretrained("digits", scheduler="unipc")
            >>> type(pipe.scheduler).__name__
            'UniPCMultistepScheduler'
        """
        folder = model_folder(pretrained_model_name_or_path)
        if folder.exists():
            verify_parts(folder)
        own = FolderSettings.load(folder, policy=policy is None) if own_settings else FolderSettings()
        if policy is not None:
            if "transformer" in kwargs:
                raise InputError("a policy belongs to the folder's own weights: give either policy or transformer")
            own = own.with_policies_of(policy_folder(policy), folder)
        chosen = kwargs.get("scheduler")
        if isinstance(chosen, str):
            del kwargs["scheduler"]
        pipeline = _load_parts(super().from_pretrained, folder, kwargs)
        own.require_depth(pipeline.transformer.depth)
        pipeline.own_settings = own.without_exits() if "transformer" in kwargs else own
        wanted = own.scheduler if chosen is None else chosen
        spacing = own.spacing if chosen is None else None
        if isinstance(wanted, str) and (spacing is not None or wanted != scheduler_name(pipeline.scheduler)):
            pipeline.scheduler = scheduler_like(wanted, pipeline.scheduler, spacing)
        if chosen is None:
            pipeline._own_scheduler = pipeline.scheduler
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as diffusers pipelines are, with the checksums of each part's files beside them.

        A loaded pipeline's sampling.json and exit_policy.json are saved along, without what belongs to other weights or
        to another scheduler than are saved.
        """
        own, in_place = self._settings_to_save(), self.scheduler
        if in_place is self._own_scheduler:
            self.scheduler = self._saved_scheduler  # the settings name the one that takes its place
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.scheduler = in_place
        for name, part in self.components.items():
            if part is not None:
                write_checksums(Path(save_directory, name))
        own.save(Path(save_directory))

    def _settings_to_save(self) -> FolderSettings:
        """Return the folder's settings that are valid for the current weights and scheduler."""
        own, scheduler = self.own_settings, scheduler_name(self.scheduler)
        if own.folder is None or own.scheduler is None:
            return own
        if not holds_weights_of(self.transformer, own.folder / "transformer"):
            own = own.without_exits()
        if own.scheduler != scheduler:
            own = replace(own, defaults=own.sampling.changed(scheduler=scheduler), stored=None, others={})
        if self.own_settings.stored is not None and own.stored is None:
            logger.warning(
                f"the exit policy of {own.folder} is not saved: it was calibrated for other weights or another "
                f"scheduler; calibrate again"
            )
        return own

    def sampling_settings(
        self,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        tau: float | Sequence[float] | None = None,
        policy: ExitPolicy | None = None,
        min_layer: int | None = None,
        guidance_interval: tuple[float, float] | None = None,
        tied_exits: bool | None = None,
        guidance: Guidance | None = None,
    ) -> ResolvedPlan:
        """Resolve how a call with these arguments samples, by `resolve` with the folder's settings and the scheduler.

        Logs one warning if a calibrated policy is used with other settings than it was calibrated for, and one if a
        guidance interval leaves no step to guide.

        Raises:
            InputError: If both `tau` and `policy` are given, or an argument is of another kind or out of range.

        Examples:
            >>> from adadiff import AdaDiffPipeline
            >>> chosen = AdaDiffPipeline.from_pretrained("digits").sampling_settings(tau=0)
            >>> chosen.steps, chosen.guidance.scale, chosen.policy
            (50, 1.0, NeverExit())
        """
        resolved = resolve(
            self.own_settings,
            self.scheduler,
            num_inference_steps,
            guidance_scale,
            tau,
            policy,
            min_layer,
            guidance_interval,
            tied_exits,
            guidance,
        )
        for warning in (resolved.warning, self._unguided_warning(resolved)):
            if warning is not None and warning not in self._warned:
                self._warned.add(warning)
                logger.warning(warning)
        return resolved

    def _unguided_warning(self, plan: ResolvedPlan) -> str | None:
        """Return the one-line warning that a guidance interval leaves no step to guide, or None."""
        guidance = plan.guidance
        if guidance.scale == 1 or guidance.interval == (0.0, 1.0):
            return None
        evaluations = len(times_of(self.scheduler, plan.steps))
        if any(guidance.applies(step, evaluations) for step in range(evaluations)):
            return None
        start, end = guidance.interval
        return (
            f"no step is guided: none of {evaluations} begins in the guidance interval [{start:g}, {end:g}), so that "
            f"the guidance scale {guidance.scale:g} has no effect; widen the interval, or set the scale to 1"
        )

    def with_parts(self, **parts: Any) -> Self:
        """Make the same pipeline with other parts: `transformer`, `scheduler`, `text_encoder` or `vae`.

        It samples as this one does, but for when samples exit, which belongs to the transformer.
        """
        other = type(self)(**{**self.components, **parts})
        changed = other.transformer is not self.transformer
        other.own_settings = self.own_settings.without_exits() if changed else self.own_settings
        other._saved_scheduler, other._own_scheduler = self._saved_scheduler, self._own_scheduler
        other._warned = self._warned
        other._denoiser = None if changed else self._denoiser
        other.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return other

    def with_denoiser(self, denoiser: Denoiser) -> Self:
        """Make the same pipeline with another denoiser for the same images, such as a baseline.

        It samples as this one does, but for when samples exit, which belongs to the transformer.
        """
        other = self.with_parts()
        other.own_settings = self.own_settings.without_exits()
        other._denoiser = denoiser
        return other


def _load_parts(load: Callable[..., Any], folder: Path, kwargs: dict[str, Any]) -> Any:
    """Load a pipeline by diffusers' `from_pretrained`; its errors are one line, and NaN weights are an error."""
    if folder.is_dir() and is_stock(folder):
        raise InputError(
            f"{folder} is a pipeline of diffusers' own: load it by DiffusionPipeline.from_pretrained, and call "
            "adadiff.calibrate(pipe, ...)"
        )
    try:
        pipeline = load(folder, **kwargs)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        if folder.exists():
            reason = one_line(error)
            raise InputError(f"{folder} cannot be loaded as a model: {reason}") from error
        raise InputError(
            f"there is no model folder {folder}, nor can a model of that name be fetched from the hub (in the "
            f"package: {suggestion(str(folder), packaged_models())})"
        ) from error
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            require_finite(part, f"{folder / name}")
    return pipeline

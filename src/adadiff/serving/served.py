"""The model that is served: what requests may ask of it, and what the engine runs for them."""

from __future__ import annotations

import copy
import secrets
from dataclasses import dataclass, replace
from typing import Any

from adadiff.conditioning import class_indices
from adadiff.policies import NeverExit
from adadiff.sampling import AdaptivePipeline
from adadiff.sampling.budgets import Budgets
from adadiff.sampling.schedulers import spacing_of
from adadiff.sampling.settings import ResolvedPlan, resolve
from adadiff.serving.protocol import GenerationRequest, ModelInfo, PlanInfo
from adadiff.serving.requests import ImageRequest
from adadiff.utils.errors import InputError

DRAWN_SEEDS = 2**32


@dataclass(frozen=True)
class PlannedRequest:
    """A request as the engine runs it, with what the response says of its plan.

    Args:
        images: What the engine runs.
        plan: The name of the plan: "own", "full", or its compute.
        warning: The one-line warning that a calibrated policy is used with other settings, or None.
    """

    images: ImageRequest
    plan: str | float
    warning: str | None


class ServedModel:
    """Checks requests against one model, and resolves their plans; it never runs the model.

    Args:
        name: The name by which requests ask for the model.
        pipeline: The model, the scheduler and the settings of its folder.
        created: Unix time of the model, in seconds.

    Raises:
        InputError: If the model cannot be served; the message says why.
    """

    def __init__(self, name: str, pipeline: AdaptivePipeline, created: int = 0) -> None:
        self.name, self.created = name, created
        # A scheduler of its own: the engine's threads and requests never share one.
        self._pipeline = pipeline.with_parts(scheduler=copy.deepcopy(pipeline.scheduler))
        backbone = pipeline.transformer.backbone
        self.takes_class, self.takes_prompt = backbone.num_classes is not None, backbone.context_shape is not None
        channels = pipeline.image_shape[0]
        if channels not in (1, 3):
            raise InputError(
                f"{name} cannot be served: it makes latents of {channels} channels, and its folder holds no "
                f"autoencoder to decode them"
            )
        if self.takes_prompt and pipeline.text_encoder is None:
            raise InputError(f"{name} cannot be served: it takes text, and its folder holds no text encoder")
        self._budgets = Budgets(self._pipeline)
        self._plans: dict[tuple[Any, ...], ResolvedPlan] = {}
        self._own = self._resolved("own", None, None)

    @property
    def size(self) -> str:
        """Width and height of the images, as `32x32`."""
        _, height, width = self._pipeline.image_shape
        return f"{width}x{height}"

    @property
    def depth(self) -> int:
        """Number of layers of the full model."""
        return self._pipeline.transformer.depth

    @property
    def can_guide(self) -> bool:
        """Whether the model was trained without its condition too, as classifier-free guidance needs."""
        has_null_class = self._pipeline.transformer.config.null_class is not None
        return has_null_class if self.takes_class else self.takes_prompt

    @property
    def full_flops(self) -> int:
        """FLOPs of an image of the full model: all layers at the default number of steps and guidance scale."""
        return self._budgets.full_flops

    def describe(self) -> ModelInfo:
        """Return what requests can choose."""
        config, full = self._pipeline.transformer.config, self._resolved("full", None, None)
        kinds = [kind for kind, takes in (("class", self.takes_class), ("prompt", self.takes_prompt)) if takes]
        return ModelInfo(
            id=self.name,
            created=self.created,
            takes=" and ".join(kinds) or "nothing",  # type: ignore[arg-type]
            classes=list(config.class_names) if config.class_names else None,
            class_indices=list(self._pipeline.transformer.class_indices),
            size=self.size,
            depth=self.depth,
            steps=full.steps,
            guidance_scale=full.guidance.scale,
            can_guide=self.can_guide,
            scheduler=str(full.scheduler),
            plans=self._plan_infos(),
        )

    def planned(self, request: GenerationRequest) -> PlannedRequest:
        """Return what the engine runs for a request.

        Raises:
            InputError: If the request does not fit the model.
        """
        if request.size not in (None, "auto", self.size):
            raise InputError(f'size: the model makes images of {self.size}; leave it out, or give that or "auto"')
        label, prompt = self._condition(request)
        if request.partial_images and not request.stream:
            raise InputError("partial_images: previews are sent in streams alone; add stream: true")
        name = self._taken(request.plan)
        plan = self._resolved(name, request.num_inference_steps, request.guidance_scale)
        self._check_guidance(plan, request.negative_prompt)
        first = secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed
        images = ImageRequest(
            seeds=tuple(range(first, first + request.n)),
            plan=plan,
            class_label=label,
            prompt=prompt,
            negative_prompt=request.negative_prompt,
            previews=request.partial_images,
        )
        return PlannedRequest(images, name, plan.warning)

    def _condition(self, request: GenerationRequest) -> tuple[int | str | None, str | None]:
        """Return the class and the prompt of a request, checked; a prompt may name the class."""
        label, prompt = request.class_label, request.prompt or None
        if self.takes_class and not self.takes_prompt and prompt is not None:
            if label is not None:
                raise InputError("give the class either as class_label or as prompt, not both")
            label, prompt = prompt, None
        for given, takes, kind, setting in (
            (label, self.takes_class, "class", "class_label"),
            (prompt, self.takes_prompt, "prompt", "prompt"),
        ):
            if given is not None and not takes:
                raise InputError(f"{setting}: the model takes no {kind}; leave it out")
            if takes and given is None:
                raise InputError(f"{setting}: the model takes a {kind}; give one")
        if label is not None:
            transformer = self._pipeline.transformer
            config, classes = transformer.config, transformer.backbone.num_classes
            label = class_indices([label], classes, config.class_names, config.null_class)[0]
        return label, prompt

    def _check_guidance(self, plan: ResolvedPlan, negative_prompt: str | None) -> None:
        if negative_prompt and not self.takes_prompt:
            raise InputError("negative_prompt: the model takes no prompts; leave it out")
        if plan.guidance.scale > 1 and not self.can_guide:
            raise InputError(
                "guidance_scale: the model has no unconditional prediction to guide away from; leave it at 1"
            )

    def _taken(self, plan: str | float) -> str | float:
        """Return the name of the plan that a request takes: for a budget, the most expensive one within it."""
        if isinstance(plan, str):
            return plan
        try:
            return self._budgets.named(plan)
        except InputError as error:
            raise InputError(f"plan: {error}") from error

    def _resolved(self, plan: str | float, steps: int | None, guidance_scale: float | None) -> ResolvedPlan:
        """Return the plan of that name with the request's settings, and check that it fits the model."""
        key = (plan, steps, guidance_scale)
        if key in self._plans:
            return self._plans[key]
        pipeline = self._sampling_by(plan)
        policy = NeverExit() if pipeline is self._budgets.full else None
        resolved = resolve(pipeline.own_settings, pipeline.scheduler, steps, guidance_scale, policy=policy)
        pipeline.check_inputs(1, resolved.steps, resolved.policy, resolved.guidance)
        spacing = spacing_of(pipeline.scheduler)
        if spacing != spacing_of(self._pipeline.scheduler):  # the engine would space the steps as the own plan does
            resolved = replace(resolved, spacing=spacing)
        if len(self._plans) < 256:  # requests may name any number of scales
            self._plans[key] = resolved
        return resolved

    def _sampling_by(self, plan: str | float) -> AdaptivePipeline:
        """Return the model that samples by the plan of that name."""
        if isinstance(plan, str):
            return self._budgets.full if plan == "full" else self._pipeline
        return self._budgets.plans[plan]

    def _plan_infos(self) -> list[PlanInfo]:
        stored = self._pipeline.own_settings.stored
        own = 1.0 if isinstance(self._own.policy, NeverExit) else None
        computes: dict[str | float, float | None] = {
            "own": own if stored is None else self._budgets.compute_of(stored),
            **{name: self._budgets.computes[name] for name in self._budgets.plans if name < 1},
            "full": 1.0,
        }
        return [self._plan_info(plan, compute) for plan, compute in computes.items()]

    def _plan_info(self, plan: str | float, compute: float | None) -> PlanInfo:
        resolved = self._resolved(plan, None, None)
        rounded = None if compute is None else round(compute, 4)
        return PlanInfo(
            plan=plan,
            compute_fraction=rounded,
            steps=resolved.steps,
            guidance_scale=resolved.guidance.scale,
            guidance=resolved.guidance.in_words,
        )

"""Diffusers' schedulers by short names."""

from __future__ import annotations

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from adadiff.errors import lookup

SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
}


def scheduler_like(name: str, trained_with: SchedulerMixin) -> SchedulerMixin:
    """The named scheduler over the same forward process.

    Raises:
        InputError: If there is no such scheduler.
    """
    return lookup(name, SCHEDULERS, "scheduler").from_config(trained_with.config)


def scheduler_name(scheduler: SchedulerMixin) -> str:
    """Its short name, or that of its class where it has none."""
    names = {kind: name for name, kind in SCHEDULERS.items()}
    return names.get(type(scheduler), type(scheduler).__name__)

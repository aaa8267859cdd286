"""Diffusers' schedulers: short names, a check that they fit our models, and preparation for a sampling run."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from adadiff.utils.errors import InputError, lookup, one_line

SCHEDULERS: dict[str, type[SchedulerMixin]] = {
    "ddpm": DDPMScheduler,
    "ddim": DDIMScheduler,
    "dpm-solver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
}


def scheduler_like(name: str, trained_with: SchedulerMixin, spacing: str | None = None) -> SchedulerMixin:
    """Build the named scheduler for the same forward process.

    Args:
        name: A short name, or the class name of a diffusers scheduler, as `scheduler_name` returns them.
        trained_with: A scheduler of that process.
        spacing: Spacing of the time steps, leading, linspace or trailing; by default as `trained_with` spaces them.

    Raises:
        InputError: If there is no such scheduler, or it does not support that process or that spacing.
    """
    kind = _class_named(name) or lookup(name, SCHEDULERS, "scheduler")
    spaced = {} if spacing is None else {"timestep_spacing": spacing}
    if spaced and "timestep_spacing" not in inspect.signature(kind.__init__).parameters:
        raise InputError(f"{name} has no spacing of time steps to choose: leave it out, or choose another scheduler")
    try:
        return kind.from_config(trained_with.config, **spaced)
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = one_line(error)
        raise InputError(f"{name} cannot take the place of {type(trained_with).__name__}: {reason}") from error


def stored_scheduler(name: str, settings: Mapping[str, Any]) -> SchedulerMixin:
    """Build a scheduler of diffusers from the name of its class and its settings, as a file stores them.

    Raises:
        InputError: If diffusers has no such scheduler, or it does not take these settings.
    """
    kind, advice = _class_named(name), "name another by --scheduler, or calibrate again"
    if kind is None:
        raise InputError(f"the stored scheduler {name!r} is none of diffusers {diffusers.__version__}: {advice}")
    try:
        return kind.from_config(dict(settings))
    except Exception as error:  # settings of any kind break its constructor in any way
        raise InputError(f"{name} does not take its stored settings ({one_line(error)}): {advice}") from error


def _class_named(name: str) -> Any:
    """Return diffusers' scheduler class of that name; None if there is none."""
    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    return kind if isinstance(kind, type) and issubclass(kind, SchedulerMixin) else None


def scheduler_name(scheduler: SchedulerMixin) -> str:
    """Return a scheduler's short name, or its class name if it has none."""
    names = {kind: name for name, kind in SCHEDULERS.items()}
    return names.get(type(scheduler), type(scheduler).__name__)


def spacing_of(scheduler: SchedulerMixin) -> str | None:
    """Return the spacing of a scheduler's time steps: leading, linspace or trailing; None if it has but one."""
    return scheduler.config.get("timestep_spacing")


def require_suitable(scheduler: SchedulerMixin) -> None:
    """Raise InputError unless a scheduler samples from noise to images by what our models predict."""
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    has_all = all(hasattr(scheduler, part) for part in ("alphas_cumprod", "set_timesteps", "step", "scale_model_input"))
    for_flows = config.get("use_flow_sigmas") or str(config.get("prediction_type")).startswith("flow")
    if not has_all or for_flows or "Inverse" in name:
        fitting = ", ".join(kind.__name__ for kind in SCHEDULERS.values())
        raise InputError(
            f"{name}{' with flow sigmas' if has_all and for_flows else ''} does not fit the model, which predicts "
            f"noise, velocity or the image along the variance-preserving forward process of DDPM: choose a scheduler "
            f"for that process, such as {fitting}"
        )


def started(scheduler: SchedulerMixin, num_steps: int, device: torch.device | None = None) -> SchedulerMixin:
    """Prepare a scheduler for a sampling run of `num_steps` steps; return it, or a copy with corrected spacing.

    With as many sampling steps as training time steps, diffusers' multistep solvers repeat time steps ("linspace" and
    "leading" spacing) and divide by zero; the copy has "trailing" spacing, which takes every time step once.
    """
    scheduler.set_timesteps(num_steps, device=device)
    times, most_steps = scheduler.timesteps, scheduler.config.num_train_timesteps
    if num_steps == most_steps == len(times) > len(times.unique()) and "timestep_spacing" in scheduler.config:
        scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")
        scheduler.set_timesteps(num_steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # otherwise the first step is looked up by its time, which need not be unique
    return scheduler


def times_of(scheduler: SchedulerMixin, num_steps: int) -> tuple[float, ...]:
    """Return the time of every model evaluation in `num_steps` steps, in order; the scheduler stays unchanged.

    Heun's method, KDPM2 and PNDM evaluate the model more often than there are steps.

    Raises:
        InputError: If the scheduler does not fit the model, or takes no such number of steps.
    """
    require_suitable(scheduler)
    most_steps = scheduler.config.num_train_timesteps
    if not 1 <= num_steps <= most_steps:
        raise InputError(f"the number of steps is {num_steps}: it must be between 1 and {most_steps}")
    try:
        twin = started(copy.deepcopy(scheduler), num_steps)
        pixel, noise = torch.zeros(1, 1, 1, 1), noise_arguments(twin, torch.Generator())
        twin.step(twin.scale_model_input(pixel, twin.timesteps[0]), twin.timesteps[0], pixel, **noise)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError) as error:
        reason = one_line(error)
        raise InputError(
            f"{type(scheduler).__name__} cannot sample this model in {num_steps} steps ({reason}): "
            f"choose another number of steps or another scheduler"
        ) from error
    return tuple(twin.timesteps.tolist())


def noise_arguments(scheduler: SchedulerMixin, generator: Any) -> dict[str, Any]:
    """Build the keyword arguments that make a stochastic scheduler's `step` draw its noise from the generator."""
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}

"""Which step of a pipeline's scheduler a call of its transformer belongs to.

The clock only looks. `set_timesteps` makes a new tensor, so another tensor of time steps is another trajectory. A
scheduler that counts says the step itself; with the others it is where the call's time stands among its time steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adadiff.utils.errors import InputError

ANOTHER_LOOP = (
    "another pipeline, or a loop of your own, uses the transformer: call adadiff.disable(pipe) first, or give both "
    "pipelines one scheduler"
)


@dataclass(frozen=True)
class Reading:
    """When a call takes place.

    Args:
        timesteps: The scheduler's time steps, (steps,).
        step: Which of them the call belongs to, counted from 0; schedulers may evaluate the model several times per
            step, and each evaluation counts as one.
        time: The time that the transformer is given.
    """

    timesteps: Tensor
    step: int
    time: float


def read_clock(pipe: Any, timestep: Any) -> Reading:
    """Read which step a pipeline is at, when it calls its transformer.

    Args:
        pipe: The pipeline; None if it no longer exists.
        timestep: The time step that the transformer is given: a number, or a tensor with one for each row.

    Raises:
        InputError: If tokens or rows have time steps of their own, or the pipeline's scheduler is not the one in use.
    """
    if pipe is None:
        raise InputError("the pipeline that adadiff was enabled for no longer exists: enable it for the one in use")
    given, scheduler = _one_time(timestep), pipe.scheduler
    if getattr(scheduler, "num_inference_steps", 0) is None:
        raise InputError(f"the pipeline's scheduler is not in use: {ANOTHER_LOOP}")
    step = _step(scheduler, given)
    if not 0 <= step < len(scheduler.timesteps):
        raise InputError(f"the scheduler's last step is over: {ANOTHER_LOOP}")
    return Reading(scheduler.timesteps, step, given.item())


def _one_time(timestep: Any) -> Tensor:
    """Return the time of all rows, a tensor of one element on the CPU."""
    if timestep is None:
        raise InputError("the transformer is called without a time step: adadiff needs one")
    times = torch.as_tensor(timestep)
    if times.ndim > 1 and times.numel() > len(times):
        raise InputError("each token has a time step of its own, and adadiff needs one for all: call disable(pipe)")
    times = times.flatten().cpu()
    if (times != times[0]).any():
        raise InputError("rows have time steps of their own, and adadiff needs one for all: call disable(pipe)")
    return times[0]


def _step(scheduler: Any, time: Tensor) -> int:
    if hasattr(scheduler, "step_index"):
        begins = getattr(scheduler, "begin_index", None) or 0
        return begins if scheduler.step_index is None else int(scheduler.step_index)
    if hasattr(scheduler, "counter"):
        return int(scheduler.counter)
    found = (scheduler.timesteps.cpu().to(time.dtype) == time).nonzero()
    if not len(found):
        raise InputError(f"the time {time.item():g} is none of the scheduler's: {ANOTHER_LOOP}")
    return int(found[0])

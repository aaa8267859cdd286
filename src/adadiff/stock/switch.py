"""Adaptive depth in stock diffusers pipelines, switched on and off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from adadiff.policies import ExitPolicy, FixedExit, NeverExit, ScheduleExit
from adadiff.stock.families import family_of, time_name
from adadiff.stock.hooks import TransformerHooks, hooks_of
from adadiff.stock.record import StockTrace
from adadiff.stock.trajectory import PipelineState
from adadiff.stock.views import Blocks
from adadiff.utils.errors import InputError


def enable(pipe: Any, policy: ExitPolicy, layers: Sequence[str] | None = None) -> None:
    """Let a stock diffusers pipeline run only as many layers of its transformer as a policy asks for at each step.

    The pipeline is called as before. Its transformers' weights and methods stay as they are, nothing is trained, and
    their own norm and projection read the prediction off at the exit layer. With `CorrectedScheduleExit` what the later
    layers added at full steps is carried on to early ones. Enabling again replaces the policy.

    A schedule counts evaluations of the model, one per entry of `scheduler.timesteps`; for another number of them it is
    stretched, with a warning. Calls of the transformer with gradients enabled are left alone.

    Args:
        pipe: A diffusers pipeline with one or several transformers.
        policy: `NeverExit`, `FixedExit`, `ScheduleExit` or `CorrectedScheduleExit`.
        layers: Names of the transformers' lists of blocks, in the order they run, for models that adadiff does not
            know; two lists that run in turns are joined by `+`.

    Raises:
        InputError: If the policy reads uncertainties or names layers that a transformer does not have, the pipeline has
            a U-Net, its transformer is unknown or has a cache of diffusers enabled, or another pipeline's scheduler
            drives its transformer.

    Examples:
        >>> import adadiff
        >>> from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
        >>> transformer = DiTTransformer2DModel(2, 8, 4, num_layers=4, sample_size=8, norm_num_groups=2).eval()
        >>> pipe = DiTPipeline(transformer, vae=None, scheduler=DDIMScheduler())
        >>> adadiff.enable(pipe, adadiff.CorrectedScheduleExit((4, 1, 4, 1)))
        >>> adadiff.trace(pipe).calls  # those of the latest sampling
        ()
        >>> adadiff.disable(pipe)
    """
    if not isinstance(policy, (NeverExit, FixedExit, ScheduleExit)):
        raise InputError(
            f"{type(policy).__name__} decides by uncertainties, which stock transformers do not estimate: use "
            "NeverExit, FixedExit, ScheduleExit or CorrectedScheduleExit"
        )
    if isinstance(policy, ScheduleExit) and 0 in policy.layers:
        raise InputError("the schedule leaves the network out at a step: stock pipelines run layer 1 at the least")
    transformers = _transformers(pipe)
    blocks = {name: Blocks(unwrap_module(each), family_of(unwrap_module(each), layers)) for name, each in transformers}
    for name, component in transformers:
        policy.check(blocks[name].depth, len(policy.layers) if isinstance(policy, ScheduleExit) else 1)
        time_name(unwrap_module(component))
        _check_free(pipe, component)
    disable(pipe)
    state = PipelineState(pipe, policy)
    for name, component in transformers:
        TransformerHooks(component, name, blocks[name], state)


def disable(pipe: Any) -> None:
    """Let a pipeline run all layers again, with every attribute of its transformers as before `enable`.

    Nothing happens if adadiff is not enabled.

    Args:
        pipe: The pipeline.
    """
    for _, component in _transformers(pipe):
        if (hooks := hooks_of(component)) is not None:
            hooks.remove()


def trace(pipe: Any) -> StockTrace:
    """Return which layers each call of a pipeline's transformers ran in the latest sampling.

    Args:
        pipe: The pipeline.

    Raises:
        InputError: If adadiff is not enabled.
    """
    for _, component in _transformers(pipe):
        if (hooks := hooks_of(component)) is not None:
            trajectory = hooks.state.trajectory
            return StockTrace(tuple(trajectory.calls) if trajectory else ())
    raise InputError("adadiff is not enabled for this pipeline: call adadiff.enable(pipe, policy)")


def _transformers(pipe: Any) -> list[tuple[str, nn.Module]]:
    """Return the pipeline's transformers with their names, each once."""
    components = getattr(pipe, "components", {})
    found = {
        id(unwrap_module(part)): (name, part)
        for name, part in reversed(components.items())
        if name.startswith("transformer") and isinstance(part, nn.Module)
    }
    if found:
        return list(found.values())[::-1]
    if "unet" in components:
        raise InputError(f"{type(pipe).__name__} has a U-Net, and adadiff cuts transformers alone")
    raise InputError(f"{type(pipe).__name__} is not a diffusers pipeline with a transformer")


def _check_free(pipe: Any, component: nn.Module) -> None:
    """Raise InputError if the transformer is driven by another pipeline, or accelerated otherwise."""
    model = unwrap_module(component)
    if getattr(model, "is_cache_enabled", False):
        raise InputError(f"a cache of diffusers is enabled: call {type(model).__name__}.disable_cache() first")
    hooks = hooks_of(component)
    other = hooks.state.pipe if hooks is not None else None
    if other is not None and other.scheduler is not pipe.scheduler:
        raise InputError(
            "the transformer is shared with a pipeline that adadiff is enabled for: disable that one first, or give "
            "both pipelines one scheduler"
        )

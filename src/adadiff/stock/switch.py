"""Adaptive depth in stock diffusers pipelines, switched on and off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from adadiff.policies import ExitPolicy, NeverExit
from adadiff.sampling import AdaptivePipeline
from adadiff.stock.adapting.adaptation import Adaptation, known_in_advance
from adadiff.stock.adapting.adapted import AdaptedHooks
from adadiff.stock.costs import LayerCosts
from adadiff.stock.families import HAS_UNET, family_of, time_name
from adadiff.stock.hooks import TransformerHooks, check_no_cache, hooks_of
from adadiff.stock.record import StockTrace
from adadiff.stock.recorder import ExitRecorder, RecordingHooks, steps_observed
from adadiff.stock.stored import StockPolicy
from adadiff.stock.trajectory import PipelineState
from adadiff.stock.views import Blocks, is_compiled
from adadiff.utils.errors import InputError

logger = logging.getLogger(__name__)

GRAPHS = 64
"""Graphs that torch keeps of a model compiled as a whole, at least: each exit, replay and set of taps has its own."""

MakeHooks = Callable[[nn.Module, str, Blocks, PipelineState], TransformerHooks]


def enable(
    pipe: Any,
    policy: ExitPolicy | StockPolicy | str | Path,
    layers: Sequence[str] | None = None,
    adaptation: Adaptation | str | Path | None = None,
) -> None:
    """Let a stock diffusers pipeline run only as many layers of its transformer as a policy asks for at each step.

    The pipeline is called as before. Its transformers' weights and methods stay as they are, nothing is trained, and
    their own norm and projection read the prediction off at the exit layer. With `CorrectedScheduleExit` what the later
    layers added at full steps is carried on to early ones. Enabling again replaces the policy.

    A schedule counts evaluations of the model, one per entry of `scheduler.timesteps`; for another number of them it is
    stretched, with a warning. Calls of the transformer with gradients enabled are left alone.

    Args:
        pipe: A diffusers pipeline with one or several transformers.
        policy: `NeverExit`, `FixedExit`, `ScheduleExit` or `CorrectedScheduleExit`, or any other one with an
            adaptation; or a policy stored by `calibrate`: the policy, its folder, the name of a packaged model, or that
            of its repository on the Hugging Face Hub. Where the pipeline or a call is not what a stored policy was
            calibrated for, a warning says what differs.
        layers: Names of the transformers' lists of blocks, in the order they run, for models that adadiff does not
            know; two lists that run in turns are joined by `+`.
        adaptation: What `adadiff.adapt` returned, or the folder it was saved in. Its exit heads are used where the
            policy exits after a layer that has one, and its estimators let each sample exit by itself, by policies such
            as `ThresholdExit`.

    Raises:
        InputError: If the policy reads uncertainties and there is no adaptation, or it names layers that a transformer
            does not have, the adaptation is another transformer's, the pipeline has a U-Net, its transformer is unknown
            or has a cache of diffusers enabled, or another pipeline's scheduler drives its transformer.

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
    stored = StockPolicy.from_pretrained(policy) if isinstance(policy, (str, Path)) else policy
    if isinstance(adaptation, (str, Path)):
        adaptation = Adaptation.load(Path(adaptation))
    if not isinstance(adaptation, Adaptation | None):
        raise InputError(f"{adaptation!r} is no adaptation: give what adadiff.adapt returned, or its folder")
    if not isinstance(stored, StockPolicy):
        switch_on(pipe, stored, layers, adaptation=adaptation)
        return
    if (depth := depth_of(pipe, layers)) != stored.calibrated_for.depth:
        raise InputError(
            f"the policy is for a transformer of {stored.calibrated_for.depth} layers, and this one has {depth}: "
            f"calibrate for this pipeline"
        )
    for difference in stored.differences_from(pipe, transformers_of(pipe)):
        logger.warning("the policy was calibrated for another pipeline: %s", difference)
    switch_on(pipe, stored.policy, layers, stored.costs, stored, adaptation=adaptation)


def switch_on(
    pipe: Any,
    policy: ExitPolicy,
    layers: Sequence[str] | None = None,
    costs: Mapping[str, LayerCosts] | None = None,
    stored: StockPolicy | None = None,
    make_hooks: MakeHooks = TransformerHooks,
    adaptation: Adaptation | None = None,
) -> None:
    """Let a pipeline follow a policy; see `enable` for the arguments and errors.

    Args:
        pipe: The pipeline.
        policy: The exit policy.
        layers: Names of the transformers' lists of blocks.
        costs: What calls cost by the layers they run, by the transformer's name, if known.
        stored: What the policy was calibrated for, if it was.
        make_hooks: Makes the hooks of a transformer without adaptation.
        adaptation: Fitted exits, if there are any.
    """
    if not isinstance(policy, ExitPolicy):
        raise InputError(f"{policy!r} is no exit policy: give one such as CorrectedScheduleExit, or a calibrated one")
    if adaptation is None and not known_in_advance(policy):
        raise InputError(
            f"{type(policy).__name__} decides by uncertainties, which stock transformers do not estimate: give it "
            "adaptation=adadiff.adapt(pipe, prompts), or use NeverExit, FixedExit, ScheduleExit or "
            "CorrectedScheduleExit"
        )
    transformers = transformers_of(pipe)
    blocks = {name: Blocks(unwrap_module(each), family_of(unwrap_module(each), layers)) for name, each in transformers}
    for name, component in transformers:
        policy.check(blocks[name].depth, policy.num_steps or 1)
        time_name(unwrap_module(component))
        _check_free(pipe, component)
    if adaptation is not None:
        adaptation.check(transformers, policy)
        costs = {**{name: each.settings.costs for name, each in adaptation.transformers.items()}, **(costs or {})}
    disable(pipe)
    compiler = torch._dynamo.config
    compiler.recompile_limit = max(compiler.recompile_limit, GRAPHS)
    state = PipelineState(pipe, policy, costs or {}, stored)
    for name, component in transformers:
        if adaptation is not None:
            AdaptedHooks(component, name, blocks[name], state, adaptation.transformers[name])
        else:
            make_hooks(component, name, blocks[name], state)


@contextmanager
def recording(pipe: Any, recorder: ExitRecorder, layers: Sequence[str] | None = None) -> Iterator[None]:
    """Let a pipeline run all layers and record what every exit would have predicted."""
    switch_on(pipe, NeverExit(), layers, make_hooks=partial(RecordingHooks, recorder=recorder))
    with steps_observed(pipe.scheduler, recorder.end_step):
        yield


@contextmanager
def trying(pipe: Any) -> Iterator[None]:
    """Try policies in the block: the pipeline is enabled or disabled as before at its end.

    Transformers that are compiled as a whole run uncompiled in it, since every policy would make graphs of its own.
    """
    found = [(component, hooks_of(component)) for _, component in transformers_of(pipe)]
    compiled = any(is_compiled(component) for component, _ in found)
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        disable(pipe)
        for component, hooks in found:
            if hooks is not None:
                hooks.attach(component)


def depth_of(pipe: Any, layers: Sequence[str] | None = None) -> int:
    """Return the number of layers N of a pipeline's transformers.

    Args:
        pipe: The pipeline.
        layers: Names of the transformers' lists of blocks; see `enable`.

    Raises:
        InputError: If there are several transformers of different depths, or `enable` would refuse one.
    """
    models = [unwrap_module(component) for _, component in transformers_of(pipe)]
    depths = {Blocks(model, family_of(model, layers)).depth for model in models}
    if len(depths) > 1:
        raise InputError(f"the pipeline's transformers have {sorted(depths)} layers: one schedule cannot fit all")
    return depths.pop()


def disable(pipe: Any) -> None:
    """Let a pipeline run all layers again, with every attribute of its transformers as before `enable`.

    Nothing happens if adadiff is not enabled.

    Args:
        pipe: The pipeline.
    """
    for _, component in transformers_of(pipe):
        if (hooks := hooks_of(component)) is not None:
            hooks.remove()


def trace(pipe: Any) -> StockTrace:
    """Return which layers each call of a pipeline's transformers ran in the latest sampling.

    Args:
        pipe: The pipeline.

    Raises:
        InputError: If adadiff is not enabled.
    """
    for _, component in transformers_of(pipe):
        if (hooks := hooks_of(component)) is not None:
            trajectory = hooks.state.trajectory
            return StockTrace(tuple(trajectory.calls) if trajectory else ())
    raise InputError("adadiff is not enabled for this pipeline: call adadiff.enable(pipe, policy)")


def transformers_of(pipe: Any) -> list[tuple[str, nn.Module]]:
    """Return the pipeline's transformers with their names, each once."""
    if isinstance(pipe, AdaptivePipeline):
        raise InputError("this is a pipeline of adadiff's own: give the policy to its calls, pipe(..., policy=policy)")
    components = getattr(pipe, "components", {})
    found = {
        id(unwrap_module(part)): (name, part)
        for name, part in reversed(components.items())
        if name.startswith("transformer") and isinstance(part, nn.Module)
    }
    if found:
        return list(found.values())[::-1]
    if "unet" in components:
        raise InputError(f"{type(pipe).__name__} {HAS_UNET}")
    raise InputError(f"{type(pipe).__name__} is not a diffusers pipeline with a transformer")


def _check_free(pipe: Any, component: nn.Module) -> None:
    """Raise InputError if the transformer is driven by another pipeline, or accelerated otherwise."""
    check_no_cache(unwrap_module(component))
    hooks = hooks_of(component)
    other = hooks.state.pipe if hooks is not None else None
    if other is not None and other.scheduler is not pipe.scheduler:
        raise InputError(
            "the transformer is shared with a pipeline that adadiff is enabled for: disable that one first, or give "
            "both pipelines one scheduler"
        )

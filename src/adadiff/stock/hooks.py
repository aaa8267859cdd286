"""The hooks of one transformer: before a call they cut it, after it they correct what was predicted early."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from adadiff.runtime import Corrections
from adadiff.stock.clock import Reading
from adadiff.stock.contexts import CallNames
from adadiff.stock.families import check_arguments, time_name
from adadiff.stock.record import Call, Kind
from adadiff.stock.trajectory import TWO_THREADS, PipelineState, Trajectory
from adadiff.stock.views import Blocks, Taps, copied, is_compiled
from adadiff.utils.errors import InputError

ATTRIBUTE = "_adadiff"
ROW = torch.tensor([0], device="cpu")
"""The only row of a memory: the whole call."""


@dataclass(frozen=True)
class Plan:
    """What is to be done in one call.

    Args:
        trajectory: The trajectory that the call belongs to.
        kind: Which kind of call it is.
        step: The step, counted from 0, (1,) int64.
        layer: Number of layers to run.
        corrections: What is known of this kind of call.
        extrapolation: Weights by which corrections are carried on to this step, (1, 3).
        measured: The arguments for a replay of each layer whose correction is measured. They are copied, except for
            tensors, since models take items out of lists and dictionaries they are given.
        taps: What these layers return in this call.
    """

    trajectory: Trajectory
    kind: Kind
    step: Tensor
    layer: int
    corrections: Corrections
    extrapolation: Tensor
    measured: dict[int, tuple[Any, Any]]
    taps: Taps


class TransformerHooks:
    """Runs a transformer's calls under the policy of its pipeline.

    Args:
        component: The pipeline's transformer, which may be compiled.
        name: Its name among the pipeline's components.
        blocks: The blocks of the model.
        state: What it shares with the pipeline's other transformers.
    """

    def __init__(self, component: nn.Module, name: str, blocks: Blocks, state: PipelineState) -> None:
        self.model, self.name, self.blocks, self.state = blocks.model, name, blocks, state
        self._time_name, self._signature = time_name(self.model), _signature_of(self.model)
        self._plan: Plan | None = None
        self._caller: dict[str, int] = {}  # the thread whose call is in progress, and any that interfered
        self.attach(component)

    def attach(self, component: nn.Module) -> None:
        """Register the hooks, again if they were removed."""
        self._handles = [
            component.register_forward_pre_hook(self.before, with_kwargs=True),
            component.register_forward_hook(self.after, with_kwargs=True, always_call=True),
        ]
        self.names = CallNames(self.model, self.state.forget)
        self.model.__dict__[ATTRIBUTE] = self

    def remove(self) -> None:
        """Remove the hooks; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self.names.remove()
        self.blocks.restore()
        del self.model.__dict__[ATTRIBUTE]

    def bound(self, inputs: tuple[Any, Any]) -> inspect.BoundArguments:
        """Return the arguments of a call, and those by name, by the names of all."""
        args, kwargs = inputs
        return self._signature.bind_partial(*args, **kwargs)

    @torch.compiler.disable
    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Cut the model for the call that begins."""
        self._begin_call()
        if torch.is_grad_enabled():
            return
        arguments = self.bound((args, kwargs)).arguments
        check_arguments(self.blocks.family, arguments)
        check_no_cache(self.model)
        if self.model.training:
            raise InputError(f"the transformer is in training mode: call pipe.{self.name}.eval() before sampling")
        trajectory, reading = self.state.read(arguments.get(self._time_name))
        self._plan = self._planned(trajectory, reading, next(iter(arguments.values())), (args, kwargs))

    @torch.compiler.disable
    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Correct what was predicted early, or measure what the later layers added; `output` is None after an error."""
        if self._caller.get("thread") != threading.get_ident():
            return None  # the call was refused, since another thread's is in progress
        plan, self._plan = self._plan, None
        try:
            self.blocks.restore()
            if "interfered" in self._caller:
                raise InputError(TWO_THREADS)
            if plan is None:
                return None
            if output is None:
                self.state.forget()
                return None
            return self._finished(module, plan, output)
        except BaseException:
            self.state.forget()
            raise
        finally:
            if plan is not None:
                plan.taps.forget()
            self._caller.clear()

    def _begin_call(self) -> None:
        """Claim the model for this thread; forget a call that was cut off, as by Ctrl-C, and left the model cut."""
        this = threading.get_ident()
        if (claimed := self._caller.setdefault("thread", this)) != this:
            if is_calling(claimed, self.model):
                self._caller["interfered"] = this
                raise InputError(TWO_THREADS)
            self._caller["thread"] = this  # that call was cut off
        self.blocks.restore()
        if self._plan is not None:
            self._plan.taps.forget()
            self._plan = None
            self.state.forget()

    def _kind(self, trajectory: Trajectory, reading: Reading, sample: Any) -> Kind:
        """Return which kind of call this is."""
        shapes = tuple(leaf.shape for leaf in tree_leaves(sample) if isinstance(leaf, Tensor))
        return trajectory.kind(self.name, self.names.name, shapes, reading.time)

    def _planned(self, trajectory: Trajectory, reading: Reading, sample: Any, inputs: Any) -> Plan:
        """Decide what this call runs, and put the views in place."""
        blocks = self.blocks
        kind = self._kind(trajectory, reading, sample)
        corrections = trajectory.corrections_of(kind)
        layer, measured = trajectory.decide(corrections, blocks.depth)
        taps = Taps()
        if layer < blocks.depth:
            blocks.cut(layer)
        elif exits := [each for each in measured if each]:
            taps = blocks.tap(exits)
        own_inputs = {each: tree_map(lambda leaf: leaf, inputs) for each in measured}
        step = torch.tensor([reading.step], device="cpu")
        return Plan(trajectory, kind, step, layer, corrections, trajectory.extrapolation, own_inputs, taps)

    def _all_exits_planned(
        self, trajectory: Trajectory, reading: Reading, sample: Any, inputs: Any, exits: Sequence[int]
    ) -> Plan:
        """Plan a call that runs all layers, with taps on all of the exits."""
        kind, step = self._kind(trajectory, reading, sample), torch.tensor([reading.step], device="cpu")
        own_inputs = {each: tree_map(lambda leaf: leaf, inputs) for each in exits}
        corrections, taps = trajectory.corrections_of(kind), self.blocks.tap(exits)
        return Plan(trajectory, kind, step, self.blocks.depth, corrections, trajectory.extrapolation, own_inputs, taps)

    def _check_looped(self, plan: Plan) -> None:
        """Raise InputError if a call that should have run all layers, with taps on all exits, ran none of them."""
        if not any(plan.taps.ran(layer) for layer in plan.measured):
            lists = ", ".join(self.blocks.family.layers)
            raise InputError(
                f"{type(self.model).__name__} does not loop over {lists}: it cannot be cut to fewer layers"
            )

    def _finished(self, module: nn.Module, plan: Plan, output: Any) -> Any:
        """Return the output of a call, corrected if it exited early, and record the call."""
        corrected = plan.layer < self.blocks.depth and plan.corrections.known(plan.layer)
        leaves, structure = tree_flatten(output)
        if corrected:
            early = _packed(leaves) if plan.layer else torch.zeros_like(_packed(leaves))
            row = plan.corrections.correct(plan.layer, ROW, plan.step, early, plan.extrapolation)
            leaves = _unpacked(row, leaves)
            output = tree_unflatten(leaves, structure)
        elif plan.measured:
            if is_compiled(module):
                output = copied(output)
                plan.taps.own()
            self._measure(module, plan, _packed(leaves), output)
        self.state.check_call(plan.trajectory, output_rows(output)[1])
        plan.trajectory.record(plan.kind, self._call(plan, corrected, leaves), self.blocks.depth)
        return output

    def _call(self, plan: Plan, corrected: bool, leaves: Sequence[Any]) -> Call:
        costs, depth = self.state.costs.get(self.name), self.blocks.depth
        values = sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))
        read_off = sum(plan.taps.ran(layer) for layer in plan.measured if layer)
        compute = None if costs is None else costs.of(plan.layer, read_off)
        kind = plan.kind
        return Call(kind.transformer, plan.trajectory.step, kind.name, plan.layer, depth, corrected, values, compute)

    def _measure(self, module: nn.Module, plan: Plan, full: Tensor, output: Any) -> None:
        """Measure the full prediction minus the early one at each exit; `full` is (1, values) float32."""
        for layer in plan.measured:
            if layer == 0 or plan.taps.ran(layer):
                plan.corrections.measure(layer, ROW, plan.step, full - self._early(module, plan, layer, full))

    def _early(self, module: nn.Module, plan: Plan, layer: int, full: Tensor) -> Tensor:
        """Return the prediction after a layer whose output was tapped; the full one if the layer was left out.

        After layer 0 nothing is predicted: zeros.
        """
        if layer == 0:
            return torch.zeros_like(full)
        if not plan.taps.ran(layer):
            return full
        args, kwargs = plan.measured[layer]
        with self.blocks.replayed(layer, plan.taps):
            return _packed(tree_leaves(module.forward(*args, **kwargs)))


def _signature_of(model: nn.Module) -> inspect.Signature:
    """Return the signature of a model's forward method, without `self`."""
    signature = inspect.signature(type(model).forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def is_calling(thread: int, model: nn.Module) -> bool:
    """Return whether a thread is within a call of a model, which may be compiled."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, nn.Module) and unwrap_module(caller) is model:
            return True
        frame = frame.f_back
    return False


def check_no_cache(model: nn.Module) -> None:
    """Raise InputError if a cache of diffusers is enabled for a transformer."""
    if getattr(model, "is_cache_enabled", False):
        raise InputError(f"a cache of diffusers is enabled: call {type(model).__name__}.disable_cache() first")


def hooks_of(component: nn.Module) -> TransformerHooks | None:
    """Return the hooks of a pipeline's transformer; None if it has none."""
    hooks: TransformerHooks | None = unwrap_module(component).__dict__.get(ATTRIBUTE)
    return hooks


def output_rows(output: Any) -> tuple[int, tuple[int, ...]]:
    """Return how many rows an output has, and the shape of one; its first part is a tensor of all or a list of each."""
    rows = output
    if isinstance(output, (tuple, Mapping)):
        rows = output[0] if isinstance(output, tuple) else next(iter(output.values()))
    return len(rows), tuple(rows[0].shape)


def _packed(leaves: Sequence[Any]) -> Tensor:
    """Copy the tensors of an output into one row, (1, values) float32."""
    return torch.cat([leaf.float().flatten() for leaf in leaves if isinstance(leaf, Tensor)])[None]


def _unpacked(row: Tensor, like: Sequence[Any]) -> list[Any]:
    """Split a row, (1, values), into tensors of the shapes and types of an output's; other leaves stay as they are."""
    sizes = [leaf.numel() if isinstance(leaf, Tensor) else 0 for leaf in like]
    parts = row[0].split(sizes)
    return [
        part.view(leaf.shape).to(leaf.dtype) if isinstance(leaf, Tensor) else leaf
        for part, leaf in zip(parts, like, strict=True)
    ]

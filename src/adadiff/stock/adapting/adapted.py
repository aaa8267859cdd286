"""Hooks of a transformer with fitted exits: they apply its heads, and let rows of a batch exit by themselves.

Where a policy asks for uncertainties, the call of the transformer ends at the first exit layer that it asks about. The
rows that do not exit there go on: the transformer is called again for them alone, starts from what that layer returned,
and runs to the next exit layer or the last one. Only the embeddings and the head run again.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from adadiff.policies import ExitPolicy, ExitQuery
from adadiff.stock.adapting.adaptation import FittedExits, known_in_advance
from adadiff.stock.adapting.projection import Projection, ProjectionHooks
from adadiff.stock.adapting.rows import RowInputs, by_rows, paired, replaced, selected
from adadiff.stock.clock import Reading
from adadiff.stock.hooks import Plan, output_rows
from adadiff.stock.record import Call
from adadiff.stock.trajectory import PipelineState, Trajectory
from adadiff.stock.views import Blocks, Taps, copied, is_compiled


@dataclass(frozen=True)
class RowPlan(Plan):
    """What is to be done in a call whose rows exit by themselves; `layer` is where it ends at first.

    Args:
        stops: The exit layers that the policy is asked at, in order.
        inputs: The arguments of the call, and those by name.
        sample: What is denoised.
    """

    stops: tuple[int, ...]
    inputs: tuple[Any, Any]
    sample: Any


class AdaptedHooks(ProjectionHooks):
    """Runs a transformer's calls with its fitted exits.

    Args:
        component: The pipeline's transformer, which may be compiled.
        name: Its name among the pipeline's components.
        blocks: The blocks of the model.
        state: What it shares with the pipeline's other transformers.
        fitted: The exits.
    """

    def __init__(
        self, component: nn.Module, name: str, blocks: Blocks, state: PipelineState, fitted: FittedExits
    ) -> None:
        self.fitted, self._time = fitted, 0.0
        self._row_inputs = RowInputs(fitted.settings.row_inputs)
        super().__init__(component, name, blocks, state)
        self._projection = self.projection = Projection(self.model, fitted.settings.projection)

    def _planned(self, trajectory: Trajectory, reading: Reading, sample: Any, inputs: Any) -> Plan:
        self._time = reading.time
        plan = (
            super()._planned(trajectory, reading, sample, inputs)
            if known_in_advance(trajectory.policy)
            else self._rows_planned(trajectory, reading, sample, inputs)
        )
        self._projection.place()
        self._projection.head = self.fitted.head(plan.layer, reading.time)
        return plan

    def _rows_planned(self, trajectory: Trajectory, reading: Reading, sample: Any, inputs: Any) -> RowPlan:
        """Plan a call that ends at the first exit layer that the policy is asked at."""
        kind = self._kind(trajectory, reading, sample)
        stops = self._stops(trajectory.policy, reading.step)
        taps = self.blocks.tap(stops[:1], stops[0]) if stops else Taps()
        return RowPlan(
            trajectory,
            kind,
            torch.tensor([reading.step], device="cpu"),
            stops[0] if stops else self.blocks.depth,
            trajectory.corrections_of(kind),
            trajectory.extrapolation,
            {},
            taps,
            stops,
            tree_map(lambda leaf: leaf, inputs),
            sample,
        )

    def _stops(self, policy: ExitPolicy, step: int) -> tuple[int, ...]:
        """Return the exit layers at which rows may exit at a step."""
        stops = []
        for layer in self.fitted.settings.exits:
            unread = ExitQuery(torch.tensor([step]), layer, torch.tensor([0]), torch.full((1, layer), torch.nan))
            always = not policy.reads_uncertainty(step, layer) and bool(policy.leaves(unread))
            if always or policy.reads_uncertainty(step, layer):
                stops.append(layer)
            if always:
                break
        return tuple(stops)

    def _early(self, module: nn.Module, plan: Plan, layer: int, full: Tensor) -> Tensor:
        with self._projection.fitted(self.fitted.head(layer, self._time)):
            return super()._early(module, plan, layer, full)

    def _finished(self, module: nn.Module, plan: Plan, output: Any) -> Any:
        if not isinstance(plan, RowPlan):
            return super()._finished(module, plan, output)
        if plan.stops and is_compiled(module):
            output = copied(output)
            plan.taps.own()
        output, layers = self._by_rows(module, plan, output)
        plan.trajectory.calls.append(self._call_by_rows(plan, output, layers))
        return output

    def _by_rows(self, module: nn.Module, plan: RowPlan, output: Any) -> tuple[Any, Tensor]:
        """Let rows exit, and run the others on; return the output and the layers run for each row, (rows,) int64."""
        rows, policy, depth = output_rows(output)[0], plan.trajectory.policy, self.blocks.depth
        groups = 2 if plan.stops and paired(plan.sample, rows) else 1
        layers = torch.full((rows,), depth)
        uncertainty = torch.full((rows, depth), torch.nan)
        remaining, taps = torch.arange(rows), plan.taps
        for stop, following in itertools.pairwise((*plan.stops, depth)):
            if not taps.ran(stop):  # skip-layer guidance leaves its blocks out: there is nothing to go on from
                output = replaced(output, self._whole(module, plan, remaining, rows), remaining)
                break
            if policy.reads_uncertainty(int(plan.step), stop):
                tokens = by_rows(self._projection.tokens, len(remaining))
                uncertainty[remaining, stop - 1] = self.fitted.uncertainty(stop, self._time, tokens)
            steps = plan.step.expand(len(remaining))
            leaves = policy.leaves(ExitQuery(steps, stop, remaining, uncertainty[remaining, :stop]))
            leaves = leaves.view(groups, -1).all(0).repeat(groups)  # a pair of guidance exits together
            layers[remaining[leaves]] = stop
            if leaves.all():
                break
            if leaves.any():
                kept, before = (~leaves).nonzero()[:, 0], len(remaining)
                remaining = remaining[kept]
                for tap in taps:
                    tap.output = selected(tap.output, before, kept)
            part, taps = self._run_on(module, plan, taps, stop, following, remaining, rows)
            output = replaced(output, part, remaining)
        return output, layers

    def _whole(self, module: nn.Module, plan: RowPlan, remaining: Tensor, rows: int) -> Any:
        """Run some rows through all layers; return their output."""
        self.blocks.restore()
        bound = self._bound_for(plan, remaining, rows)
        with self._projection.fitted(None):
            return module.forward(*bound.args, **bound.kwargs)

    def _bound_for(self, plan: RowPlan, remaining: Tensor, rows: int) -> inspect.BoundArguments:
        """Return the arguments of the call for some rows."""
        bound = self.bound(tree_map(lambda leaf: leaf, plan.inputs))
        bound.arguments.update(self._row_inputs.select(bound.arguments, rows, remaining))
        return bound

    def _run_on(
        self, module: nn.Module, plan: RowPlan, taps: Taps, stop: int, following: int, remaining: Tensor, rows: int
    ) -> tuple[Any, Taps]:
        """Run some rows from one exit layer to the next; return their output and what that layer returned."""
        bound = self._bound_for(plan, remaining, rows)
        head = self._projection.fitted(self.fitted.head(following, self._time))
        with head, self.blocks.replayed(stop, taps, following) as next_taps:
            return module.forward(*bound.args, **bound.kwargs), next_taps

    def _call(self, plan: Plan, corrected: bool, leaves: Sequence[Any]) -> Call:
        call, costs = super()._call(plan, corrected, leaves), self.state.costs.get(self.name)
        if call.compute is None or costs is None:
            return call
        fitted = sum(layer in self.fitted.settings.exits for layer in (plan.layer, *plan.measured))
        return replace(call, compute=call.compute + fitted * costs.projection)

    def _call_by_rows(self, plan: RowPlan, output: Any, layers: Tensor) -> Call:
        ran = tuple(layers.tolist())
        costs = self.state.costs.get(self.name)
        compute = None
        if costs is not None:
            each = [
                costs.of(
                    layer,
                    read_off=sum(stop < layer for stop in plan.stops),
                    fitted=sum(stop <= layer for stop in plan.stops),
                )
                for layer in ran
            ]
            compute = sum(each) / len(each)
        kind, depth = plan.kind, self.blocks.depth
        values = sum(leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        return Call(kind.transformer, int(plan.step), kind.name, max(ran), depth, False, values, compute, ran)

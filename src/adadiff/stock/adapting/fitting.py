"""Hooks that show, along full samplings, what each exit of a transformer reads and how far its prediction is off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from adadiff.stock.adapting.projection import Projection, ProjectionHooks, find_projection
from adadiff.stock.adapting.rows import RowInputs, by_rows, selected
from adadiff.stock.clock import Reading
from adadiff.stock.costs import LayerCosts, count_costs, mean_costs
from adadiff.stock.hooks import Plan, output_rows
from adadiff.stock.record import Kind
from adadiff.stock.trajectory import PipelineState, Trajectory
from adadiff.stock.views import Blocks

See = Callable[[int, int, Tensor, Tensor, Tensor], None]
"""Sees an exit in one call: the position of the exit, the bin of the time, what the projection reads after the exit's
layer, (rows, tokens, width), what it returns of that, (rows, tokens, out), and what it returns after all layers."""


class Survey:
    """What is learned of one transformer along full samplings.

    Args:
        exits: The early exit layers, in 1..N-1, in order.
        bins: Number of bins that the steps of a sampling are divided into.

    Attributes:
        projection: Name of the model's last linear map; empty until the first call.
        row_inputs: Which arguments have an entry for each row.
        row_inputs_known: Whether batches of all sizes were seen.
        predictions: The full predictions of the present step, (rows, values) float32 each.
        separable: Whether a row that goes on alone from an exit is predicted as in its batch; None if not tried yet.
    """

    def __init__(self, exits: tuple[int, ...], bins: int) -> None:
        self.exits, self.bins = exits, bins
        self.projection = ""
        self.row_inputs, self.row_inputs_known = RowInputs(), False
        self.predictions: list[Tensor] = []
        self.separable: bool | None = None
        self._times: list[set[float]] = [set() for _ in range(bins)]
        self._costs: dict[Kind, LayerCosts] = {}

    def bin(self, reading: Reading) -> int:
        """Return the bin of a call's time, and note the time."""
        bin_ = reading.step * self.bins // len(reading.timesteps)
        self._times[bin_].add(reading.time)
        return bin_

    def count(self, kind: Kind, module: nn.Module, blocks: Blocks, inputs: Any) -> None:
        """Count the FLOPs of a kind of call, the first time it is seen."""
        if kind not in self._costs:
            args, kwargs = tree_map(lambda leaf: leaf, inputs)
            projection = blocks.model.get_submodule(self.projection)
            self._costs[kind] = count_costs(module, blocks, args, kwargs, projection)

    @property
    def costs(self) -> LayerCosts:
        """FLOPs of the parts of a call, averaged over kinds of calls."""
        return mean_costs(self._costs.values())

    @property
    def times(self) -> tuple[float, ...]:
        """The mean time of each bin; NaN where the transformer was not called."""
        return tuple(sum(times) / len(times) if times else torch.nan for times in self._times)


class FittingHooks(ProjectionHooks):
    """Runs all layers, and shows what each exit would have predicted.

    Args:
        component: The pipeline's transformer.
        name: Its name among the pipeline's components.
        blocks: The blocks of the model.
        state: What it shares with the pipeline's other transformers.
        survey: What is learned of the transformer.
        see: Sees each exit of each call.
    """

    def __init__(
        self, component: nn.Module, name: str, blocks: Blocks, state: PipelineState, survey: Survey, see: See
    ) -> None:
        self.survey, self.see, self._bin = survey, see, 0
        super().__init__(component, name, blocks, state)

    def _planned(self, trajectory: Trajectory, reading: Reading, sample: Any, inputs: Any) -> Plan:
        if not self.survey.projection:
            args, kwargs = tree_map(lambda leaf: leaf, inputs)
            self.survey.projection = find_projection(self.model, self.blocks, args, kwargs)
        if self.projection is None:
            self.projection = Projection(self.model, self.survey.projection)
        self._bin = self.survey.bin(reading)
        plan = self._all_exits_planned(trajectory, reading, sample, inputs, self.survey.exits)
        self.projection.place()
        return plan

    def _measure(self, module: nn.Module, plan: Plan, full: Tensor, output: Any) -> None:
        self._check_looped(plan)
        assert self.projection is not None
        inputs, rows = plan.measured[self.survey.exits[0]], output_rows(output)[0]
        final, errors = by_rows(self.projection.output, rows), {}
        self.survey.predictions.append(full.view(rows, -1))
        self.survey.row_inputs.observe(self.bound(inputs).arguments, rows)
        for position, layer in enumerate(self.survey.exits):
            if plan.taps.ran(layer):
                self._early(module, plan, layer, full)
                tokens, early = (by_rows(each, rows) for each in (self.projection.tokens, self.projection.output))
                self.see(position, self._bin, tokens, early, final)
                errors[layer] = _size(final - early)
        self.survey.count(plan.kind, module, self.blocks, inputs)
        if self.survey.row_inputs_known and self.survey.separable is None:
            self.survey.separable = self._separable(module, plan, rows, final, errors)

    def _separable(self, module: nn.Module, plan: Plan, rows: int, final: Tensor, errors: dict[int, float]) -> bool:
        """Return whether the last row, going on alone from each exit, is predicted as in its batch.

        Args:
            module: The transformer.
            plan: The plan of the call, whose taps are then of no more use.
            rows: Number of rows.
            final: What the projection returned after all layers, (rows, tokens, out).
            errors: Root mean squares of what the layers after each exit add to that.
        """
        assert self.projection is not None
        last = torch.tensor([rows - 1])
        for tap in plan.taps:
            tap.output = selected(tap.output, rows, last)
        for layer, error in errors.items():
            bound = self.bound(tree_map(lambda leaf: leaf, plan.measured[layer]))
            bound.arguments.update(self.survey.row_inputs.select(bound.arguments, rows, last))
            with self.blocks.replayed(layer, plan.taps, self.blocks.depth):
                module.forward(*bound.args, **bound.kwargs)
            alone = by_rows(self.projection.output, 1)
            rounding = 4 * torch.finfo(final.dtype).eps * _size(final)
            if alone.shape != final[last].shape or _size(alone - final[last]) > rounding + 0.05 * error:
                return False
        return True


def _size(values: Tensor) -> float:
    """Return the root mean square."""
    return values.float().square().mean().sqrt().item()

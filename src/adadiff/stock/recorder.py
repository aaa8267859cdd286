"""Records what every exit of a stock transformer would have predicted, along full samplings of its pipeline.

A pipeline combines a step's predictions, such as the conditional and the unconditional one, in code of its own before
its scheduler gets them. With classifier-free guidance the combination is linear, so its weights are found by comparing
what the scheduler gets with the full predictions; early predictions are then combined by the same weights.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from adadiff.stock.clock import Reading
from adadiff.stock.costs import LayerCosts, count_costs, mean_costs
from adadiff.stock.hooks import Plan, TransformerHooks, output_rows
from adadiff.stock.record import Kind
from adadiff.stock.trajectory import PipelineState, Trajectory
from adadiff.stock.views import Blocks
from adadiff.utils.errors import InputError

UNEXPLAINED = 0.05  # most of the scheduler's input, by its squares, that a combination may leave unexplained


class ExitRecorder:
    """Records the products of each exit's differences from the full prediction at a step and at earlier ones.

    Args:
        exits: The early exit layers, in 1..N-1, in order.
        window: Number of steps whose differences are multiplied, the present one included.
        samples: Number of samples of the call that is recorded.

    Attributes:
        rows: Predictions so far: of each sample at each step, the halves of a guided pair each counted.
    """

    def __init__(self, exits: tuple[int, ...], window: int, samples: int) -> None:
        self.exits, self.samples, self.rows = exits, samples, 0
        self.costs: dict[Kind, LayerCosts] = {}
        self.called: Counter[Kind] = Counter()
        self.shapes: set[tuple[int, ...]] = set()
        self._predictions: list[Tensor] = []
        self._differences: deque[Tensor] = deque(maxlen=window)
        self._products: list[Tensor] = []

    @property
    def steps(self) -> int:
        """Number of steps recorded: evaluations of the scheduler."""
        return len(self._products)

    @property
    def flops_per_sample(self) -> float:
        """FLOPs of the transformers for a sample with all layers."""
        return sum(count * self.costs[kind].flops for kind, count in self.called.items()) / self.samples

    def costs_by_transformer(self) -> dict[str, LayerCosts]:
        """Return the costs of each transformer's calls, by its name, averaged over its calls."""
        names = dict.fromkeys(kind.transformer for kind in self.called)
        called = {name: [kind for kind in self.called.elements() if kind.transformer == name] for name in names}
        return {name: mean_costs(self.costs[kind] for kind in kinds) for name, kinds in called.items()}

    def add(self, kind: Kind, rows: int, shape: tuple[int, ...], predictions: list[Tensor]) -> None:
        """Record a call of the transformer.

        Args:
            kind: Which kind of call it is.
            rows: Number of samples that were predicted, the halves of a guided batch each counted.
            shape: Shape of what is predicted for one row.
            predictions: The predictions after each early exit, and the full one last, each (1, values) float32.
        """
        self.called[kind] += 1
        self.rows += rows
        self.shapes.add(shape)
        stacked = torch.cat(predictions)  # (exits + 1, values)
        groups = rows // self.samples
        if groups * self.samples != rows:
            raise InputError(
                f"the transformer predicts {rows} rows for {self.samples} samples: each sample has to have as many"
            )
        self._predictions += stacked.view(len(stacked), groups, self.samples, -1).unbind(1)

    def end_step(self, combined: Tensor) -> None:
        """Take what the scheduler gets, (rows, ...): the combination of the step's predictions."""
        predictions, self._predictions = self._predictions, []
        if not predictions:
            raise InputError("the scheduler took a step without a call of the transformer: adadiff cannot record it")
        exits = _combined_exits(predictions, combined, self.samples)  # (exits + 1, samples, values)
        difference = torch.cat([torch.zeros_like(exits[:1]), exits]) - exits[-1]  # layer 0 predicts nothing
        self._differences.appendleft(difference)
        count, samples, values = difference.shape
        products = difference.new_zeros(self._differences.maxlen or 1, count, count, samples)
        for k, earlier in enumerate(self._differences):
            products[k] = torch.einsum("isv,jsv->ijs", difference, earlier) / values
        self._products.append(products.cpu())

    @property
    def products(self) -> Tensor:
        """Products of the differences at a step and k steps earlier, averaged over the values of a sample.

        (steps, window, exits + 2, exits + 2, samples), with k along the second axis, the exits at the later step along
        the third and those at the earlier one along the fourth. The exits begin with layer 0 and end with the full
        model, whose difference is 0.
        """
        return torch.stack(self._products)


class RecordingHooks(TransformerHooks):
    """Runs all layers, and records what each exit would have predicted.

    Args:
        component: The pipeline's transformer.
        name: Its name among the pipeline's components.
        blocks: The blocks of the model.
        state: What it shares with the pipeline's other transformers.
        recorder: What records the exits.
    """

    def __init__(
        self, component: nn.Module, name: str, blocks: Blocks, state: PipelineState, recorder: ExitRecorder
    ) -> None:
        self.recorder = recorder
        super().__init__(component, name, blocks, state)

    def _planned(self, trajectory: Trajectory, reading: Reading, sample: Any, inputs: Any) -> Plan:
        return self._all_exits_planned(trajectory, reading, sample, inputs, self.recorder.exits)

    def _measure(self, module: nn.Module, plan: Plan, full: Tensor, output: Any) -> None:
        self._check_looped(plan)
        recorder = self.recorder
        if plan.kind not in recorder.costs:
            args, kwargs = tree_map(lambda leaf: leaf, plan.measured[recorder.exits[0]])
            recorder.costs[plan.kind] = count_costs(module, self.blocks, args, kwargs)
        predictions = [*(self._early(module, plan, layer, full) for layer in recorder.exits), full]
        recorder.add(plan.kind, *output_rows(output), predictions)


@contextmanager
def steps_observed(scheduler: Any, end_step: Callable[[Tensor], None]) -> Iterator[None]:
    """Call a function with what the scheduler gets at each step."""
    before = {name: own for name, own in vars(scheduler).items() if name == "step"}
    scheduler.step = _ObservedStep(scheduler.step, end_step)
    try:
        yield
    finally:
        del scheduler.step
        vars(scheduler).update(before)


class _ObservedStep:
    """Shows what a scheduler's step gets, and takes it; a copy of the scheduler takes its own, and shows nothing."""

    def __init__(self, step: Callable[..., Any], end_step: Callable[[Tensor], None]) -> None:
        functools.update_wrapper(self, step)
        self._step, self._end_step = step, end_step

    def __call__(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._end_step(model_output)
        return self._step(model_output, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._step, memo)


def _combined_exits(predictions: list[Tensor], combined: Tensor, samples: int) -> Tensor:
    """Combine the predictions of each exit as the pipeline combined the full ones: (exits + 1, samples, values).

    Where no weights explain what the pipeline did, the predictions stay side by side, and all count.

    Args:
        predictions: What was predicted in each group of rows, (exits + 1, samples, values of a row) each.
        combined: What the scheduler gets, (samples, ...) or (2 * samples, ...) with both halves alike.
        samples: Number of samples.
    """
    weights, values = guidance_weights([each[-1] for each in predictions], combined, samples)
    if weights is None:
        return torch.cat(predictions, dim=2)
    parts = torch.stack([each[:, :, :values] for each in predictions])
    return torch.einsum("p,pesv->esv", weights.to(parts), parts)


def guidance_weights(full: Sequence[Tensor], combined: Tensor, samples: int) -> tuple[Tensor | None, int]:
    """Return the weights by which a pipeline combined full predictions, (parts,), and how many values it combined.

    The weights are None where none explain what the pipeline did.

    Args:
        full: What was predicted in each group of rows, (samples, values of a row) each.
        combined: What the scheduler gets, (samples, ...) or (2 * samples, ...) with both halves alike.
        samples: Number of samples.
    """
    target = combined.float().flatten().view(-1, combined.numel() // len(combined))[:samples]
    values = target.shape[1]
    if any(each.shape[1] < values for each in full):
        return None, values
    return _weights(
        torch.stack([each[:, :values] for each in full]), target
    ), values  # a variance comes after the noise


def _weights(full: Tensor, target: Tensor) -> Tensor | None:
    """Return the weights by which full predictions add up to the target, (parts,); None if none do.

    Args:
        full: Full predictions, (parts, samples, values).
        target: Their combination, (samples, values).
    """
    if not full.isfinite().all():
        return None
    columns, wanted = full.flatten(1).double(), target.flatten().double()
    weights = torch.linalg.pinv(columns @ columns.T, hermitian=True) @ (columns @ wanted)
    left = (weights @ columns - wanted).square().sum()
    return weights if left <= UNEXPLAINED * wanted.square().sum() else None

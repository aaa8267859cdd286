"""What a call of a stock transformer costs, by the number of layers it runs, counted on a real call."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adadiff.stock.views import Blocks


@dataclass(frozen=True)
class LayerCosts:
    """The shares of a transformer's parts in the FLOPs of a full call; together they are 1.

    Args:
        refiners: Of the blocks before the layers, which exits run and replays do not.
        head: Of all else outside the layers: embeddings, the last norm and projection. Reading a prediction off from
            the tokens that a layer returned costs it again.
        layers: Of layers 1..N.
        projection: Of the last linear map, which is a part of the head, and so of a fitted exit head; 0 if unknown.
        flops: FLOPs of the full call that was counted, of all its rows; 0 if unknown.

    Examples:
        >>> costs = LayerCosts(refiners=0.0, head=0.04, layers=(0.24, 0.24, 0.24, 0.24))
        >>> costs.of(1), costs.of(4, read_off=1)
        (0.28, 1.04)
    """

    refiners: float
    head: float
    layers: tuple[float, ...]
    projection: float = 0.0
    flops: float = 0.0

    def of(self, layer: int, read_off: int = 0, fitted: int = 0) -> float:
        """Return the FLOPs of a call over those of a full one.

        Args:
            layer: Number of layers run, 0..N.
            read_off: Number of early exits that are read off besides, to measure their corrections or uncertainties.
            fitted: Number of exits, among all that are read off, with a fitted head.
        """
        heads = self.head * (1 + read_off) + self.projection * fitted
        return round(self.refiners + sum(self.layers[:layer]) + heads, 12)


def count_costs(
    module: nn.Module, blocks: Blocks, args: Any, kwargs: Any, projection: nn.Module | None = None
) -> LayerCosts:
    """Count the FLOPs of a full call, of each layer and of what is outside of the layers.

    Args:
        module: The transformer, whose forward pass runs once.
        blocks: Its layers.
        args: Arguments of the call.
        kwargs: Arguments by name.
        projection: The last linear map, if its share is to be counted.
    """
    counter, last = FlopCounterMode(display=False), [] if projection is None else [projection]
    spent: dict[nn.Module, int] = {}

    def begin(block: nn.Module, *_: Any) -> None:
        spent[block] = spent.get(block, 0) - counter.get_total_flops()

    def end(block: nn.Module, *_: Any) -> None:
        spent[block] += counter.get_total_flops()

    # what is compiled as one graph refuses to run under a counter
    with ExitStack() as hooks, torch.no_grad(), torch.compiler.set_stance("force_eager"), counter:
        for block in (*blocks.all(), *last):
            hooks.callback(block.register_forward_pre_hook(begin).remove)
            hooks.callback(block.register_forward_hook(end).remove)
        module.forward(*args, **kwargs)
    total = counter.get_total_flops()
    layers = tuple(_share(blocks.of_layer(layer), spent, total) for layer in range(1, blocks.depth + 1))
    refiners = _share(blocks.refiners(), spent, total)
    return LayerCosts(refiners, 1 - refiners - sum(layers), layers, _share(last, spent, total), total)


def mean_costs(costs: Iterable[LayerCosts]) -> LayerCosts:
    """Average the costs of calls of one kind of transformer."""
    each = list(costs)
    layers = zip(*(cost.layers for cost in each), strict=True)
    return LayerCosts(
        sum(cost.refiners for cost in each) / len(each),
        sum(cost.head for cost in each) / len(each),
        tuple(sum(shares) / len(each) for shares in layers),
        sum(cost.projection for cost in each) / len(each),
        sum(cost.flops for cost in each) / len(each),
    )


def _share(of: Iterable[nn.Module], spent: dict[nn.Module, int], total: int) -> float:
    return sum(spent.get(block, 0) for block in of) / total

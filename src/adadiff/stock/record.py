"""The record of a stock pipeline's sampling: which layers each call of its transformers ran."""

from __future__ import annotations

from dataclasses import dataclass

from adadiff.utils.errors import InputError


@dataclass(frozen=True)
class Call:
    """One call of a transformer.

    Args:
        transformer: Name of the transformer among the pipeline's components.
        step: Sampling step, counted from 0 in evaluations of the scheduler.
        kind: Which call of the step it was: its name in diffusers, such as `cond`, or `call 0`, `call 1`.
        layers: Number of layers run.
        depth: Number of layers of the full model, N.
        corrected: Whether an early prediction was corrected by what the later layers added at full steps.
        values: Number of values predicted, which is proportional to the number of samples.
    """

    transformer: str
    step: int
    kind: str
    layers: int
    depth: int
    corrected: bool
    values: int


@dataclass(frozen=True)
class StockTrace:
    """The calls of a stock pipeline's transformers in its latest sampling.

    Args:
        calls: The calls, in order.
    """

    calls: tuple[Call, ...]

    @property
    def layer_fraction(self) -> float:
        """Layers run over layers of the full model, averaged over predictions, in (0, 1].

        Raises:
            InputError: If nothing was sampled since adadiff was enabled.
        """
        if not self.calls:
            raise InputError("nothing was sampled since adadiff was enabled: call the pipeline first")
        layers = sum(call.values * call.layers for call in self.calls)
        return layers / sum(call.values * call.depth for call in self.calls)

    @property
    def exit_layers(self) -> dict[tuple[str, str], dict[int, int]]:
        """The number of layers run by step, for each transformer and kind of call."""
        layers: dict[tuple[str, str], dict[int, int]] = {}
        for call in self.calls:
            layers.setdefault((call.transformer, call.kind), {})[call.step] = call.layers
        return layers

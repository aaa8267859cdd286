"""The record of a stock pipeline's sampling: which layers each call of its transformers ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Size

from adadiff.utils.errors import InputError


@dataclass(frozen=True)
class Kind:
    """A kind of call that is made once per step, such as the unconditional one.

    Args:
        transformer: Name of the transformer among the pipeline's components.
        name: Name of the call.
        shapes: Shapes of the sample.
    """

    transformer: str
    name: str
    shapes: tuple[Size, ...]


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
        compute: FLOPs over those of a full call, corrections included; None if the costs of the layers are not known.
    """

    transformer: str
    step: int
    kind: str
    layers: int
    depth: int
    corrected: bool
    values: int
    compute: float | None = None


@dataclass(frozen=True)
class StockTrace:
    """The calls of a stock pipeline's transformers in its latest sampling.

    Args:
        calls: The calls, in order.
    """

    calls: tuple[Call, ...]

    @property
    def steps(self) -> int:
        """Number of sampling steps so far, in evaluations of the scheduler."""
        return 1 + max((call.step for call in self.calls), default=-1)

    @property
    def layer_fraction(self) -> float:
        """Layers run over layers of the full model, averaged over predictions, in (0, 1].

        Raises:
            InputError: If nothing was sampled since adadiff was enabled.
        """
        self._require_calls()
        layers = sum(call.values * call.layers for call in self.calls)
        return layers / sum(call.values * call.depth for call in self.calls)

    @property
    def compute_fraction(self) -> float:
        """FLOPs over those of the full model, averaged over predictions; above 0.

        Raises:
            InputError: If nothing was sampled since adadiff was enabled, or the costs of the layers are not known,
                which `adadiff.calibrate` counts and stores with its policy.
        """
        self._require_calls()
        if any(call.compute is None for call in self.calls):
            raise InputError("the FLOPs of the layers are not known: calibrate, or enable a calibrated policy")
        spent = sum(call.values * (call.compute or 0) for call in self.calls)
        return spent / sum(call.values for call in self.calls)

    def draw(self, axes: Any) -> None:
        """Draw the layers run at each step into matplotlib axes, one line per transformer and kind of call."""
        depth = max(call.depth for call in self.calls)
        for (transformer, kind), layers in self.exit_layers.items():
            steps = [step + 1 for step in layers]
            axes.plot(steps, list(layers.values()), "o-", drawstyle="steps-mid", label=f"{transformer}, {kind}")
        axes.set(
            xlabel="sampling step",
            ylabel=f"layers run (of {depth})",
            ylim=(-0.03 * depth, 1.05 * depth),
            title=f"{self.layer_fraction:.0%} of the layers run",
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        if len(self.exit_layers) > 1:
            axes.legend()

    def _require_calls(self) -> None:
        if not self.calls:
            raise InputError("nothing was sampled since adadiff was enabled: call the pipeline first")

    @property
    def exit_layers(self) -> dict[tuple[str, str], dict[int, int]]:
        """The number of layers run by step, for each transformer and kind of call."""
        layers: dict[tuple[str, str], dict[int, int]] = {}
        for call in self.calls:
            layers.setdefault((call.transformer, call.kind), {})[call.step] = call.layers
        return layers

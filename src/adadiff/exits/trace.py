"""The trace of a sampling: which layer each sample left after, at every step, and what that cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from adadiff.files import whole_file


@dataclass(frozen=True)
class Trace:
    """Which layer each sample left after, at every step.

    With classifier-free guidance a sample is a pair: one prediction with its condition, one without.

    Args:
        exit_layers: (steps, batch) int64, in 1..depth.
        flops: What was computed, (steps, batch) int64; of both of a pair.
        depth: Layers of the full model, N.
        full_flops: What the full model computes for one sample at one step.
        timesteps: Time of each step, (steps,) floats.
        uncertainties: Mean uncertainty of each sample after each layer, (steps, batch, depth) float32; NaN where no
            estimator ran.
        unconditional_exit_layers: Where the unconditional one of each pair left, (steps, batch) int64; 0 at steps
            without guidance.
        unconditional_uncertainties: Its mean uncertainties, shaped like `uncertainties`; NaN at steps without guidance.
    """

    exit_layers: Tensor
    flops: Tensor
    depth: int
    full_flops: int
    timesteps: tuple[float, ...]
    uncertainties: Tensor
    unconditional_exit_layers: Tensor
    unconditional_uncertainties: Tensor

    @property
    def predictions(self) -> int:
        """How often the model was asked: once for each sample and step, and once more where it was guided."""
        return self.exit_layers.numel() + int(self.unconditional_exit_layers.count_nonzero())

    @property
    def layer_fraction(self) -> float:
        """Layers run over layers of the full model, averaged over predictions, in (0, 1]."""
        layers = int(self.exit_layers.sum() + self.unconditional_exit_layers.sum())
        return layers / (self.depth * self.predictions)

    @property
    def compute_fraction(self) -> float:
        """FLOPs computed, heads and estimators included, over the full model's."""
        return int(self.flops.sum()) / (self.full_flops * self.predictions)

    @classmethod
    def join(cls, traces: Sequence[Self]) -> Self:
        """One trace of several batches, sampled with the same model and steps."""
        joined: dict[str, Any] = {
            name: torch.cat([getattr(trace, name) for trace in traces], dim=1)
            for name, value in vars(traces[0]).items()
            if isinstance(value, Tensor)
        }
        return replace(traces[0], **joined)

    def to_dict(self) -> dict[str, Any]:
        """The trace as plain values, the uncertainties left out."""
        return {
            "layer_fraction": self.layer_fraction,
            "compute_fraction": self.compute_fraction,
            "depth": self.depth,
            "full_flops": self.full_flops,
            "timesteps": list(self.timesteps),
            "exit_layers": self.exit_layers.tolist(),
            "unconditional_exit_layers": self.unconditional_exit_layers.tolist(),
            "flops": self.flops.tolist(),
        }

    def save(self, path: str | Path, **more: Any) -> None:
        """Write the trace as JSON, with `more` beside it."""
        with whole_file(Path(path)) as part:
            part.write_text(json.dumps({**more, **self.to_dict()}) + "\n")

    def plot(self, path: str | Path) -> None:
        """Draw the exit layers as a heat map, step by sample, into a picture file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4), layout="constrained")
        self.draw(figure.add_subplot())
        with whole_file(Path(path)) as part:
            figure.savefig(part, dpi=120)

    def draw(self, axes: Any) -> None:
        """Draw the heat map into matplotlib axes; a pair counts with the deeper of its two."""
        steps, batch = self.exit_layers.shape
        image = axes.imshow(
            torch.maximum(self.exit_layers, self.unconditional_exit_layers).T,
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            vmin=1,
            vmax=self.depth,
            extent=(0.5, steps + 0.5, batch - 0.5, -0.5),
        )
        axes.set(
            xlabel="sampling step", ylabel="sample", title=f"exit layer: {self.layer_fraction:.0%} of the layers run"
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        axes.figure.colorbar(image, ax=axes, label=f"exit layer (of {self.depth})")

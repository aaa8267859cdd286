"""The trace of a sampling run: the exit layer and the FLOPs of each sample at each step.

`Trace` holds every sample's exits. `TraceTotals` only counts them, so its size does not grow with the number of images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from adadiff.runtime.contract import Prediction
from adadiff.utils.errors import InputError
from adadiff.utils.files import atomic_write


@dataclass(frozen=True)
class TraceTotals:
    """Counts of exits per step and layer, with the total FLOPs; totals of several batches can be added.

    Args:
        exits: Number of samples that exited after each of the layers 1..N, (steps, depth) int64; the others exited
            after layer 0. At the first step none does.
        unconditional_exits: Exits of the unconditional predictions that guidance adds, (steps, depth) int64; 0 at
            steps without guidance.
        guided: Number of guided samples at each step, (steps,) int64.
        flops: FLOPs of all samples and steps.
        full_flops: FLOPs of the full model for one sample at one step.
        timesteps: Time of each step, (steps,) floats.
    """

    exits: Tensor
    unconditional_exits: Tensor
    guided: Tensor
    flops: int
    full_flops: int
    timesteps: tuple[float, ...]

    @classmethod
    def of(cls, trace: Trace) -> Self:
        """Count the exits of a trace."""
        return cls(
            _counted(trace.exit_layers, trace.depth),
            _counted(trace.unconditional_exit_layers, trace.depth),
            trace.guided.sum(1),
            int(trace.flops.sum()),
            trace.full_flops,
            trace.timesteps,
        )

    def __add__(self, other: Self) -> Self:
        """Add the totals of two batches, sampled with the same model and steps."""
        return replace(
            self,
            exits=self.exits + other.exits,
            unconditional_exits=self.unconditional_exits + other.unconditional_exits,
            guided=self.guided + other.guided,
            flops=self.flops + other.flops,
        )

    @property
    def images(self) -> int:
        """Number of samples."""
        return int(self.exits[0].sum())

    @property
    def depth(self) -> int:
        """Layers of the full model, N."""
        return self.exits.shape[1]

    @property
    def predictions(self) -> int:
        """Number of predictions: one for each sample and step, two at steps with guidance."""
        return self.images * len(self.exits) + int(self.guided.sum())

    @property
    def layer_fraction(self) -> float:
        """Layers run over layers of the full model, averaged over predictions, in [0, 1]."""
        layers = (self.exits + self.unconditional_exits) @ torch.arange(1, self.depth + 1)
        return int(layers.sum()) / (self.depth * self.predictions)

    @property
    def compute_fraction(self) -> float:
        """FLOPs spent, heads and estimators included, over the full model's."""
        return self.flops / (self.full_flops * self.predictions)

    @property
    def mean_exit_layers(self) -> Tensor:
        """The mean exit layer at each step, (steps,) float64."""
        return (self.exits @ torch.arange(1, self.depth + 1)).double() / self.images

    def exit_quantile(self, share: float) -> Tensor:
        """Return, for each step, the first layer by which at least this share of samples exited: (steps,) int64."""
        after_layer_0 = self.images - self.exits.sum(1, keepdim=True)
        exited = torch.cat([after_layer_0, self.exits], dim=1).cumsum(1)  # (steps, depth + 1)
        return (exited >= max(share * self.images, 1)).int().argmax(1)

    def to_dict(self) -> dict[str, Any]:
        """Return the totals as plain values, ready for JSON."""
        return {
            "images": self.images,
            "predictions": self.predictions,
            "layer_fraction": self.layer_fraction,
            "compute_fraction": self.compute_fraction,
            "depth": self.depth,
            "flops": self.flops,
            "full_flops": self.full_flops,
            "timesteps": list(self.timesteps),
            "mean_exit_layers": self.mean_exit_layers.tolist(),
            "exits": self.exits.tolist(),
            "unconditional_exits": self.unconditional_exits.tolist(),
            "guided": self.guided.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the totals from the output of `to_dict`.

        Raises:
            InputError: If values are missing or of another type.
        """
        try:
            return cls(
                torch.tensor(values["exits"], dtype=torch.int64),
                torch.tensor(values["unconditional_exits"], dtype=torch.int64),
                torch.tensor(values["guided"], dtype=torch.int64),
                values["flops"],
                values["full_flops"],
                tuple(values["timesteps"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the totals of the trace cannot be read ({error}): sample again") from error


@dataclass(frozen=True)
class Trace:
    """The exit layer, FLOPs and uncertainties of every sample at every step.

    With classifier-free guidance each sample is a pair of predictions: one with its condition, one without.

    Args:
        exit_layers: The layer each sample exited after, (steps, batch) int64, in 0..depth.
        flops: FLOPs spent, (steps, batch) int64; with guidance, the sum over the pair.
        depth: Layers of the full model, N.
        full_flops: FLOPs of the full model for one sample at one step.
        timesteps: Time of each step, (steps,) floats.
        uncertainties: Mean uncertainty of each sample after each layer, (steps, batch, depth) float32; NaN where no
            estimator ran.
        guided: Whether each sample was guided, (steps, batch) bool.
        unconditional_exit_layers: The exit layer of each pair's unconditional prediction, (steps, batch) int64; 0 at
            steps without guidance.
        unconditional_uncertainties: Mean uncertainties of the unconditional predictions, (steps, batch, depth)
            float32; NaN at steps without guidance.

    Examples:
        >>> from adadiff import AdaDiffPipeline, ScheduleExit
        >>> pipe = AdaDiffPipeline.from_pretrained("digits")  # 17 layers
        >>> pipe.set_progress_bar_config(disable=True)
        >>> trace = pipe(batch_size=2, num_inference_steps=2, policy=ScheduleExit((17, 5))).trace
        >>> trace.exit_layers
        tensor([[17, 17],
                [ 5,  5]])
        >>> f"{trace.layer_fraction:.0%} of the layers"
        '65% of the layers'
    """

    exit_layers: Tensor
    flops: Tensor
    depth: int
    full_flops: int
    timesteps: tuple[float, ...]
    uncertainties: Tensor
    guided: Tensor
    unconditional_exit_layers: Tensor
    unconditional_uncertainties: Tensor

    @property
    def steps(self) -> int:
        """Number of sampling steps, in evaluations of the model."""
        return len(self.timesteps)

    @property
    def predictions(self) -> int:
        """Number of predictions: one for each sample and step, two at steps with guidance."""
        return TraceTotals.of(self).predictions

    @property
    def layer_fraction(self) -> float:
        """Layers run over layers of the full model, averaged over predictions, in [0, 1]."""
        return TraceTotals.of(self).layer_fraction

    @property
    def compute_fraction(self) -> float:
        """FLOPs spent, heads and estimators included, over the full model's."""
        return TraceTotals.of(self).compute_fraction

    @classmethod
    def join(cls, traces: Sequence[Self]) -> Self:
        """Concatenate the traces of several batches, sampled with the same model and steps."""
        joined: dict[str, Any] = {
            name: torch.cat([getattr(trace, name) for trace in traces], dim=1)
            for name, value in vars(traces[0]).items()
            if isinstance(value, Tensor)
        }
        return replace(traces[0], **joined)

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as plain values, without the uncertainties, ready for JSON."""
        return {
            "layer_fraction": self.layer_fraction,
            "compute_fraction": self.compute_fraction,
            "depth": self.depth,
            "full_flops": self.full_flops,
            "timesteps": list(self.timesteps),
            "exit_layers": self.exit_layers.tolist(),
            "guided": self.guided.tolist(),
            "unconditional_exit_layers": self.unconditional_exit_layers.tolist(),
            "flops": self.flops.tolist(),
        }

    def save(self, path: str | Path, **more: Any) -> None:
        """Write the trace and the values in `more` to one JSON file."""
        with atomic_write(Path(path)) as part:
            part.write_text(json.dumps({**more, **self.to_dict()}) + "\n")

    def plot(self, path: str | Path) -> None:
        """Draw the exit layers as a heat map, steps by samples, into an image file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4))
        figure.subplots_adjust(left=0.09, right=1.04, bottom=0.13, top=0.91)  # in half the time of a layout
        self.draw(figure.add_subplot())
        with atomic_write(Path(path)) as part:
            figure.savefig(part, dpi=120)

    def draw(self, axes: Any) -> None:
        """Draw the exit layers as a heat map into matplotlib axes; a guided pair shows the deeper of its two exits."""
        steps, batch = self.exit_layers.shape
        image = axes.imshow(
            torch.maximum(self.exit_layers, self.unconditional_exit_layers).T,
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            vmin=0,
            vmax=self.depth,
            extent=(0.5, steps + 0.5, batch - 0.5, -0.5),
        )
        axes.set(
            xlabel="sampling step", ylabel="sample", title=f"exit layer: {self.layer_fraction:.0%} of the layers run"
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        bar = axes.figure.colorbar(image, ax=axes, label=f"exit layer (of {self.depth})")
        bar.ax.yaxis.get_major_locator().set_params(integer=True)


class TraceRecorder:
    """Collects the predictions of a sampling into a trace, each sample at its own step.

    Args:
        timesteps: Time of each step.
        samples: Number of samples.
        depth: Layers of the full model, N.
        full_flops: FLOPs of the full model for one sample at one step.
    """

    def __init__(self, timesteps: Sequence[float], samples: int, depth: int, full_flops: int) -> None:
        shape = (len(timesteps), samples)
        self.timesteps, self.depth, self.full_flops = tuple(timesteps), depth, full_flops
        self.steps_taken = 0
        self._tensors = {
            "exit_layers": torch.zeros(shape, dtype=torch.int64),
            "guided": torch.zeros(shape, dtype=torch.bool),
            "unconditional_exit_layers": torch.zeros(shape, dtype=torch.int64),
            "flops": torch.zeros(shape, dtype=torch.int64),
            "uncertainties": torch.full((*shape, depth), torch.nan),
            "unconditional_uncertainties": torch.full((*shape, depth), torch.nan),
        }

    def record(self, steps: Tensor, conditional: Prediction, unconditional: Prediction | None = None) -> None:
        """Record one prediction of every sample, or a pair of predictions where samples are guided.

        Args:
            steps: The step that each sample is at, counted from 0, (samples,) int64.
            conditional: Their predictions, one row per sample.
            unconditional: The unconditional ones of guided samples.
        """
        places = steps, torch.arange(len(steps))
        self._tensors["exit_layers"][places] = conditional.exit_layers
        self._tensors["uncertainties"][places] = conditional.uncertainties
        self._tensors["flops"][places] = conditional.flops
        if unconditional is not None:
            self._tensors["guided"][places] = True
            self._tensors["unconditional_exit_layers"][places] = unconditional.exit_layers
            self._tensors["unconditional_uncertainties"][places] = unconditional.uncertainties
            self._tensors["flops"][places] += unconditional.flops
        self.steps_taken = max(self.steps_taken, int(steps.max()) + 1)

    @property
    def trace(self) -> Trace:
        """The trace of the steps taken so far, of which there is at least one."""
        taken = {name: values[: self.steps_taken] for name, values in self._tensors.items()}
        return Trace(
            **taken, depth=self.depth, full_flops=self.full_flops, timesteps=self.timesteps[: self.steps_taken]
        )


def _counted(layers: Tensor, depth: int) -> Tensor:
    """Count how often each of the layers 1..depth occurs in each row: (steps, depth) int64; zeros are not counted."""
    return torch.stack([(layers == layer).sum(1) for layer in range(1, depth + 1)], dim=1)

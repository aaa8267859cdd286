"""A baseline of your own: sample a packaged model in another way, and compare it with the full model.

    python examples/own_baseline.py

The baseline below runs all layers at every second step and one layer in between, and adds there what the later layers
had added at the step before. It is one `Denoiser` and one `Session`: what is remembered of a sample is a row of the
session's memory, so that samples may be at different steps, come and go.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adadiff import AdaDiffPipeline, Trace
from adadiff.baselines import Baseline, BaselineSession
from adadiff.exits import AdaptiveModel
from adadiff.runtime import Inputs, any_tied


class Hold(Baseline):
    """Runs all layers at every `interval`-th step, and holds what layers 2..N added to the prediction in between."""

    def __init__(self, model: AdaptiveModel, interval: int) -> None:
        super().__init__(model)
        self.interval = interval

    def settings(self) -> dict[str, Any]:
        return {"interval": self.interval}

    def session(self, rows: int) -> HoldSession:
        return HoldSession(self, rows)


class HoldSession(BaselineSession):
    """Remembers what layers 2..N added to each row's prediction at its last full step."""

    denoiser: Hold

    def run(self, inputs: Inputs, steps: Tensor, ties: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        model = self.denoiser.model
        known = self.memory.tensor("known", (), torch.bool)  # (batch,)
        added = self.memory.tensor("added", inputs.sample.shape[1:], inputs.sample.dtype, inputs.sample.device)
        full = any_tied(~known | (steps % self.denoiser.interval == 0), ties)

        state = model.backbone.layer(1, model.backbone.embed(inputs.sample, inputs.timestep, **inputs.conditions))
        early = model.predict(1, state)  # (batch, channels, height, width)
        rows = full.nonzero().squeeze(1).to(added.device)
        if len(rows):
            state = state.select(rows)
            for i in range(2, model.depth + 1):
                state = model.backbone.layer(i, state)
            added[rows] = model.predict(model.depth, state) - early[rows]
        known |= full

        parts = model.part_flops
        shallow = parts.embed + int(parts.layers[0] + parts.heads[0])
        flops = torch.where(full, parts.full + int(parts.heads[0]), shallow)
        return early + added, torch.where(full, model.depth, 1), flops


def main() -> tuple[float, Trace]:
    """Sample the same noise with the full model and with the baseline; return the mean difference and the trace."""
    pipe = AdaDiffPipeline.from_pretrained("digits")
    pipe.set_progress_bar_config(disable=True)
    holding = pipe.with_denoiser(Hold(pipe.transformer, interval=2))
    full, cheap = (
        each(batch_size=4, tau=0, output_type="pt", generator=torch.Generator().manual_seed(0))
        for each in (pipe, holding)
    )
    error = (full.images - cheap.images).square().mean().item()
    print(f"{cheap.trace.compute_fraction:.0%} of the compute, mean squared difference {error:.2g}")
    return error, cheap.trace


if __name__ == "__main__":
    main()

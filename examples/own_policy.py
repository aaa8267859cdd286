"""An exit policy of your own: stored with a model, loaded back with it, and sampled.

    python examples/own_policy.py runs/falling

Without storing it, `pipe(policy=FallingThreshold(0.4, 0.98))` samples with it. A stored one is found by the name of its
module, which must be imported before the model is loaded; on the command line:

    PYTHONPATH=examples adadiff sample runs/falling --import own_policy --out samples
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adadiff import AdaDiffPipeline, ExitPolicy
from adadiff.policies import ExitQuery
from adadiff.policies.stored import CalibrationContext, StoredPolicy
from adadiff.utils.files import weights_checksum


@dataclass(frozen=True)
class FallingThreshold(ExitPolicy):
    """Exits once the uncertainty is below a threshold, which falls by the same factor at every step."""

    tau: float
    rate: float

    def leaves(self, query: ExitQuery) -> Tensor:
        return query.uncertainty[:, -1] < self.tau * self.rate**query.step

    def reads_uncertainty(self, step: int, layer: int) -> bool:
        return True  # estimators run only where a policy reads them


def main(folder: Path) -> None:
    pipe = AdaDiffPipeline.from_pretrained("digits")
    pipe.save_pretrained(folder)
    settings = CalibrationContext(
        weights=weights_checksum(folder / "transformer"),
        depth=pipe.transformer.depth,
        scheduler="ddim",
        steps=6,
        guidance_scale=1.0,
    )
    StoredPolicy(FallingThreshold(0.4, 0.98), settings, goal={}, found={}).save(folder)

    loaded = AdaDiffPipeline.from_pretrained(folder)  # samples as its folder says: with the policy, in 6 steps
    trace = loaded(batch_size=4, generator=torch.Generator().manual_seed(0)).trace
    print(f"{trace.compute_fraction:.0%} of the full model's compute; layers run by each sample at each step:")
    print(trace.exit_layers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

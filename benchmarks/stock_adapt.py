"""Print what fitted exit heads and thresholds are worth on a stock pipeline, beside fewer steps.

    python benchmarks/stock_adapt.py runs/digits-dit --steps 20 --guidance 4

Errors are squared differences from the full model's samples over their variance, on samples that nothing was fitted on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from diffusers import DiffusionPipeline

import adadiff
from adadiff.policies import ExitPolicy
from adadiff.stock import Adaptation, StockSampler
from adadiff.stock.switch import depth_of

CLASSES = list(range(10))
TAUS = (0.02, 0.04, 0.06, 0.1, 0.2)


class Comparison:
    """Samples the same noise by several policies, and compares with the full model.

    Args:
        pipe: The pipeline.
        samples: Number of samples.
        arguments: The other arguments of the pipeline's call.
    """

    def __init__(self, pipe: Any, samples: int, arguments: dict[str, Any]) -> None:
        self.pipe, self.numbers, self.arguments = pipe, range(samples), arguments
        adadiff.disable(pipe)
        self.full = self._sample()

    def _sample(self, **arguments: Any) -> Any:
        return StockSampler(self.pipe, CLASSES, seed=10**6, arguments={**self.arguments, **arguments})(self.numbers)

    def _error(self, samples: Any) -> float:
        return float((samples - self.full).square().mean() / self.full.var(0).mean())

    def follow(self, policy: ExitPolicy, adaptation: Adaptation | None) -> tuple[float, float]:
        """Return the error of a policy, and the fraction of the layers it runs."""
        adadiff.enable(self.pipe, policy, adaptation=adaptation)
        error = self._error(self._sample())
        return error, adadiff.trace(self.pipe).layer_fraction

    def fewer_steps(self, steps: int) -> float:
        """Return the error of the full model with fewer steps."""
        adadiff.disable(self.pipe)
        return self._error(self._sample(num_inference_steps=steps))


def every(n: int, layer: int, depth: int, steps: int) -> adadiff.CorrectedScheduleExit:
    """A corrected schedule that runs all layers at the first two steps and every n-th one."""
    return adadiff.CorrectedScheduleExit(tuple(depth if k % n == 0 or k < 2 else layer for k in range(steps)))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="folder of a class-conditional pipeline")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--samples", type=int, default=64)
    given = parser.parse_args(argv)
    pipe = DiffusionPipeline.from_pretrained(given.folder)
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": given.steps, "guidance_scale": given.guidance}
    adaptation, depth = adadiff.adapt(pipe, CLASSES, **arguments), depth_of(pipe)
    compared = Comparison(pipe, given.samples, arguments)

    print("one prediction, error of the model's own head and of the fitted one:")
    for layer, (own, fitted) in adaptation.errors().items():
        print(f"  layer {layer}: {own:.4f}  {fitted:.4f}  ({1 - fitted / own:.0%} less)")
    print("samples, corrected schedules with the model's own heads and with the fitted ones:")
    for n in (2, 3):
        for layer in (layer for layer in adaptation.errors() if layer <= depth // 2):
            policy = every(n, layer, depth, given.steps)
            own, (fitted, fraction) = compared.follow(policy, None)[0], compared.follow(policy, adaptation)
            print(f"  every {n}, else layer {layer}: {own:.3%}  {fitted:.3%}  at {fraction:.0%} of the layers")
    print("samples, thresholds and fewer steps:")
    for tau in TAUS:
        error, fraction = compared.follow(adadiff.ThresholdExit(tau), adaptation)
        compute = adadiff.trace(pipe).compute_fraction
        print(f"  tau {tau}: {error:.3%}  at {fraction:.0%} of the layers, {compute:.0%} of the compute")
    for steps in range(given.steps // 5, given.steps, given.steps // 5):
        print(f"  {steps} steps: {compared.fewer_steps(steps):.3%}  at {steps / given.steps:.0%}")


if __name__ == "__main__":
    main()

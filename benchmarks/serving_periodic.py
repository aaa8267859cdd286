"""Images a second of periodic and of free corrected schedules in a saturated engine, simulated on a flat device.

On a flat device a layer takes 1 ms for any rows, as on a GPU that they do not fill, so that all that counts is how well
samples meet at full steps. Schedules are found as the calibration finds them, from the exits of 16 samples; errors are
expected ones, in thousandths of the images' variance.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from adadiff import AdaDiffPipeline
from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.cache import TensorCache
from adadiff.calibration.kinds import LIKENESSES, CorrectedSchedule
from adadiff.calibration.periodic import PeriodicSchedule
from adadiff.calibration.quick import quick_problem
from adadiff.sampling import Conditions
from adadiff.sampling.budgets import Budgets
from adadiff.serving.costs import Batching, CallCosts, Profile, simulated_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar10-class-xs")
    parser.add_argument("--compute", type=float, nargs="+", default=[0.3, 0.45, 0.55, 0.7])
    parser.add_argument("--slots", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = Budgets(AdaDiffPipeline.from_pretrained(options.model)).full
    pipeline.set_progress_bar_config(disable=True)
    plan, depth = pipeline.sampling_settings(), pipeline.transformer.depth
    conditions = Conditions(pipeline.transformer.class_indices, guidance=plan.guidance)
    sampling = AdaptiveSampling(pipeline, plan.steps, conditions)
    problem = quick_problem(sampling, TensorCache())
    guided = tuple(plan.guidance.applies(step, sampling.evaluations) for step in range(sampling.evaluations))
    flat = CallCosts((1, 2 * options.slots), (0.001,) * 2, (0.001,) * 2)

    def images_per_second(layers: tuple[int, ...]) -> float:
        images, batching = 8 * options.slots, Batching("barrier", options.slots)
        return images / simulated_seconds(flat, Profile(layers, guided), depth, options.slots, batching, images)

    table = Table("", "compute", "expected error", "images/s", "layers", title=f"{options.model}, {plan.steps} steps")
    table.add_row("all layers", "100.0%", "0", f"{images_per_second((depth,) * len(guided)):.0f}")
    for kind in (PeriodicSchedule(), CorrectedSchedule()):
        for compute in options.compute:
            policy = next(kind.candidates(problem, compute))
            error = 1000 * problem.total_error.fitted(policy.layers, LIKENESSES[0])[0]
            spent, speed = problem.outcome(policy)[1], images_per_second(policy.layers)
            layers = " ".join(map(str, policy.layers))
            table.add_row(kind.name, f"{spent:.1%}", f"{error:.3g}", f"{speed:.0f}", layers)
    Console(width=180).print(table)


if __name__ == "__main__":
    main()

"""What a plan's images are like with and without its last step in full, by several feature networks.

The full model at its default number of steps, and the plan that `adadiff tune` finds for a number of steps, a guidance
scale and a budget, with the last step in full and with its prediction carried on, where errors at it count as little
as their influence says. The same noise for all. Samples are kept in --out, so that an interrupted run continues.
Results are printed, not asserted.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from adadiff.calibration.cache import TensorCache
from adadiff.cli.shared import load_with_default_plan
from adadiff.data import DataConfig
from adadiff.evaluation.evaluator import evaluator_for
from adadiff.evaluation.packaged import PACKAGED
from adadiff.sampling import Conditions, Guidance, SamplingPlan
from adadiff.tuning import TunablePipeline, depth
from adadiff.tuning.measure import Measurer
from adadiff.tuning.space import Choices
from adadiff.utils.files import model_folder
from adadiff.utils.text import with_error

MEASURED = 0.08  # influence of the last step over the largest, as measured with 30 steps of DPM-Solver++


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="real images, as adadiff evaluate takes them")
    parser.add_argument("--model", default="cifar10-class-xs", help="a model of classes")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--compute", type=float, default=0.45)
    parser.add_argument("--features", nargs="+", default=list(PACKAGED))
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=4_000_000, help="of noise that nothing else uses by default")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--out", type=Path, default=Path("runs/last-step"))
    options = parser.parse_args()
    folder = model_folder(Path(options.model))
    pipeline, default = load_with_default_plan(folder, options.dtype, "cpu")
    evaluator = evaluator_for(folder, DataConfig(source=options.data), options.features, None, "cpu")
    evaluator.require_enough(options.n)
    model = TunablePipeline(pipeline, default, Conditions(pipeline.transformer.class_indices))
    measurer = Measurer(model, evaluator, TensorCache(options.out / "features", {}))
    whole = model.flops(default)

    def planned(last_step: float) -> SamplingPlan:
        guidance, spacing = Guidance(options.scale), default.spacing or "leading"
        choices = Choices(options.steps, str(default.scheduler), spacing, guidance, 1.0)
        with patch.object(depth, "LAST_STEP", last_step):
            planner = depth.DepthPlanner(model, options.out / "recordings", options.seed)
            return planner.plan(choices, options.compute * whole)

    plans = {
        f"all layers, {default.steps} steps": replace(default, guidance=Guidance(options.scale)),
        "the last step carried on": planned(MEASURED),
        "the last step in full": planned(depth.LAST_STEP),
    }
    table = Table("", "compute", *evaluator.references, "agreement", title=f"scale {options.scale:g}")
    for name, plan in plans.items():
        found = measurer.measure(plan, options.n, options.seed, ("agreement",), errors=True)
        distances = (with_error(found.distances[each], found.errors[each]) for each in evaluator.references)
        table.add_row(name, f"{found.flops / whole:.1%}", *distances, f"{found.shares.get('agreement', 0):.1%}")
    console = Console(width=120)
    console.print(table)
    for name, plan in plans.items():
        console.print(f"{name}: {plan.policy}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

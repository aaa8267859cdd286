"""Compare a plan's images by how much errors at late steps count, with several feature networks.

All layers at the default number of steps, and the plan that `adadiff tune` finds for a number of steps, a guidance
scale and a budget: with errors weighted by their influence on the final image alone; with the last step in full
besides; and as now, with late steps counting more. The same noise for all. Samples are kept in --out, so that an
interrupted run continues. Results are printed, not asserted.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

from adadiff.calibration.cache import TensorCache
from adadiff.cli.options import FitOptions
from adadiff.cli.tunable import loaded_tunable
from adadiff.data import DataConfig
from adadiff.evaluation.evaluator import evaluator_of
from adadiff.evaluation.packaged import PACKAGED
from adadiff.sampling import Guidance, SamplingPlan
from adadiff.tuning import Tunable, depth
from adadiff.tuning.measure import Measurer
from adadiff.tuning.space import Choices
from adadiff.utils.files import model_folder
from adadiff.utils.text import with_error

MEASURED = 0.08  # influence of the last step over the largest, as measured with 30 steps of DPM-Solver++


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="real images, as adadiff evaluate takes them")
    parser.add_argument("--model", default="cifar10-class-xs", help="a model of classes, ours or a stock pipeline")
    parser.add_argument("--default-steps", type=int, help="compute is relative to; by default the model's own")
    parser.add_argument("--default-scale", type=float, help="guidance scale of the same")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--compute", type=float, default=0.45)
    parser.add_argument("--features", nargs="+", default=list(PACKAGED))
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=4_000_000, help="of noise that nothing else uses by default")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--out", type=Path, default=Path("runs/late-steps"))
    options = parser.parse_args()
    fit = FitOptions(
        steps=options.default_steps, guidance_scale=options.default_scale, dtype=options.dtype, device="cpu"
    )
    with loaded_tunable(model_folder(options.model), fit, None) as model, model.kept():
        compare(model, options)


def compare(model: Tunable, options: argparse.Namespace) -> None:
    """Print the table and the plans; for the options see `main`."""
    default, data = model.default, DataConfig(source=options.data)
    evaluator = evaluator_of(model.image_shape, bool(model.prompts), data, options.features, None, "cpu")
    evaluator.require_enough(options.n)
    measurer = Measurer(model, evaluator, TensorCache(options.out / "features", {}))
    whole, guidance = model.flops(default), Guidance(options.scale)

    def planned(last_step: float, late_steps: float) -> SamplingPlan:
        choices = Choices(options.steps, str(default.scheduler), default.spacing, guidance, 1.0)
        with patch.multiple(depth, LAST_STEP=last_step, LATE_STEPS=late_steps):
            planner = depth.DepthPlanner(model, options.out / "recordings", options.seed)
            return planner.plan(choices, options.compute * whole)

    plans = {
        f"all layers, {default.steps} steps": replace(default, guidance=guidance),
        "by influence alone": planned(MEASURED, 1.0),
        "the last step in full": planned(depth.LAST_STEP, 1.0),
        "late steps count more": planned(depth.LAST_STEP, depth.LATE_STEPS),
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

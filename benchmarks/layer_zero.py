"""Error of corrected schedules that may leave the network out at a step (layer 0), and of those that may not.

    python benchmarks/layer_zero.py cifar10-class-xs

Both are found by the dynamic programme on the same recorded samples, and judged on fresh ones: the mean squared
difference from the full model's images over their variance.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from adadiff import AdaDiffPipeline
from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.influence import measured_influence
from adadiff.calibration.kinds import CorrectedSchedule
from adadiff.calibration.metric import normalised_squared_error
from adadiff.calibration.problem import Problem
from adadiff.calibration.record import ExitRecord, record_exits
from adadiff.calibration.trials import Trials
from adadiff.sampling import Conditions

SEED, FRESH_SEED = 11, 12


def without_layer_0(record: ExitRecord) -> ExitRecord:
    """Return a record in which carrying on full predictions errs without measure, so that no schedule does it."""
    products = record.products.clone()
    products[:, :, 0] = products[:, :, :, 0] = 0
    products[:, 0, 0, 0] = 1e9
    return replace(record, products=products)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--compute", type=float, nargs="+", default=[0.2, 0.3, 0.45, 0.55])
    options = parser.parse_args()
    pipe = AdaDiffPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    own, model = pipe.sampling_settings(), pipe.transformer
    conditions = Conditions(model.class_indices, guidance=own.guidance)
    sampling = AdaptiveSampling(pipe, own.steps, conditions, SEED)
    record = record_exits(sampling, options.samples)
    influence = measured_influence(sampling, record)
    fresh = AdaptiveSampling(pipe, own.steps, conditions, FRESH_SEED)
    trials = Trials(fresh, 32, normalised_squared_error(record.images))
    for compute in options.compute:
        for name, recorded in (("with layer 0", record), ("without", without_layer_0(record))):
            policy = CorrectedSchedule().meeting(Problem(recorded, influence, model.part_flops), compute)
            point = trials.sample(name, policy, range(options.samples))
            error = f"{100 * point.error:.3f}% +- {100 * point.standard_error:.3f}"
            print(f"{name:12}  compute {point.compute:.3f}  error {error}  layers {policy.layers}", flush=True)


if __name__ == "__main__":
    main()

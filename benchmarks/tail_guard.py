"""The tail of the error: sampling the worst images again in full, against spending as much on every image.

    python benchmarks/tail_guard.py cifar10-class-xs

An image's error is predicted without more compute: at each full step, its corrections are compared with those that the
line through the last two would have carried on. The images with the largest sum of squared differences, weighted by
their steps' influence, are sampled again with all layers. Printed are the error's mean, 95th and 99th percentile and
maximum, in percent of the variance, on fresh samples.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from adadiff import AdaDiffPipeline, AdaptiveModel
from adadiff.calibration.adaptive import AdaptiveSampling
from adadiff.calibration.influence import measured_influence
from adadiff.calibration.kinds import CorrectedSchedule
from adadiff.calibration.metric import normalised_squared_error
from adadiff.calibration.problem import Problem
from adadiff.calibration.record import record_exits
from adadiff.calibration.trials import Trials
from adadiff.policies import CorrectedScheduleExit
from adadiff.runtime import ExitSession, Inputs, Prediction
from adadiff.sampling import Conditions

SEED, FRESH_SEED = 11, 12
BATCH = 32


class WatchedModel(AdaptiveModel):
    """A model that keeps, for every sample, how far its corrections were from the line through the last two."""

    influence: Tensor
    scale: float
    images: int
    signals: list[Tensor]

    def session(self, rows: int) -> ExitSession:
        return WatchedSession(self, rows)


class WatchedSession(ExitSession):
    """Compares each correction that a full step measures with the one carried on to it."""

    denoiser: WatchedModel

    def _predict(self, inputs: Inputs, steps: Tensor, *rest: Any) -> Prediction:
        parts = ("last", "before", "steps")
        names = [f"{layer}: " for layer in range(self.denoiser.depth) if f"{layer}: steps" in self.memory]
        before = {name: [self.memory[name + part].clone() for part in parts] for name in names}
        output = super()._predict(inputs, steps, *rest)
        signal = self.memory.tensor("signal", ())
        for name, (last, earlier, measured_at) in before.items():
            step, step_earlier = measured_at[:, 0], measured_at[:, 1]
            measured = (self.memory[name + "steps"][:, 0] > step) & (step_earlier >= 0)
            if measured.all():
                slope = ((steps - step) / (step - step_earlier)).view(-1, 1, 1, 1)
                differences = self.memory[name + "last"] - last - slope * (last - earlier)
                if len(inputs) == 2 * self.denoiser.images:  # guided pairs: the conditional rows, then the others
                    conditional, unconditional = differences.chunk(2)
                    differences = unconditional + self.denoiser.scale * (conditional - unconditional)
                squares = differences.square().flatten(1).mean(1)
                signal[: len(squares)] += squares * float(self.denoiser.influence[int(steps[0])])
        if int(steps[0]) == len(self.denoiser.influence) - 1:
            self.denoiser.signals.append(signal[: self.denoiser.images])
        return output


def summary(errors: NDArray[np.floating]) -> str:
    """Return the mean, 95th and 99th percentile and maximum of errors, in percent."""
    figures = [errors.mean(), *np.quantile(errors, [0.95, 0.99]), errors.max()]
    return "  ".join(f"{100 * figure:7.3f}" for figure in figures)


def main() -> None:
    """Find the policies, sample with them, and print the error of each way to spend the compute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--compute", type=float, nargs="+", default=[0.3, 0.45])
    parser.add_argument("--share", type=float, default=0.05, help="share of the images that are sampled again")
    parser.add_argument("--recorded", type=int, default=48, help="samples that the policies are found on")
    parser.add_argument("--samples", type=int, default=256, help="fresh samples, a multiple of 32")
    options = parser.parse_args()
    pipe = AdaDiffPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    own, model = pipe.sampling_settings(), pipe.transformer
    conditions = Conditions(model.class_indices, guidance=own.guidance)
    sampling = AdaptiveSampling(pipe, own.steps, conditions, SEED)
    record = record_exits(sampling, options.recorded)
    influence = measured_influence(sampling, record)
    problem = Problem(record, influence, model.part_flops)

    model.__class__ = WatchedModel
    model.influence, model.scale, model.images, model.signals = influence, own.guidance.scale, BATCH, []
    trials = Trials(replace(sampling, seed=FRESH_SEED), BATCH, normalised_squared_error(record.images))
    trials.sample("full", CorrectedScheduleExit((model.depth,) * own.steps), range(options.samples))
    print("                                   compute     mean     95th     99th  maximum   error in percent")
    for compute in options.compute:
        model.signals.clear()
        plain = trials.sample("plain", CorrectedSchedule().meeting(problem, compute), range(options.samples))
        signal = torch.cat(model.signals)  # (samples,)
        worst = signal.argsort(descending=True)[: round(options.share * options.samples)]
        guarded = plain.losses.copy()
        guarded[worst.numpy()] = 0
        richer = trials.sample(
            "richer", CorrectedSchedule().meeting(problem, compute + options.share), range(options.samples)
        )
        best = plain.losses.copy()
        best[np.argsort(-best)[: len(worst)]] = 0
        correlation = spearmanr(signal.numpy(), plain.losses).statistic
        rows = (
            ("the schedule", plain.compute, plain.losses),
            ("its worst, by the signal, in full", plain.compute + options.share, guarded),
            ("its worst, if they were known", plain.compute + options.share, best),
            ("a richer schedule for all", richer.compute, richer.losses),
        )
        for name, spent, errors in rows:
            print(f"{name:34} {spent:.3f}  {summary(errors)}")
        print(f"rank correlation of the signal with the error: {correlation:.2f}\n", flush=True)


if __name__ == "__main__":
    main()

"""Time of correcting early exits: one schedule with and without corrections, and the full model.

U-ViT-S/2 size, random weights; all layers at every second step, one layer at the others. One process, variants timed
alternately, medians; results are printed, not asserted.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from adaptive_depth import DEPTH, UVIT_S2
from rich.console import Console
from rich.table import Table

from adadiff import AdaDiffPipeline, AdaptiveModel, CorrectedScheduleExit, NeverExit, ScheduleExit
from adadiff.training.config import DiffusionConfig
from adadiff.utils.timing import median_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()
    torch.manual_seed(0)
    model = AdaptiveModel(sample_size=32, in_channels=3, backbone_config=UVIT_S2).eval()
    pipeline = AdaDiffPipeline(model, DiffusionConfig().build())
    pipeline.set_progress_bar_config(disable=True)
    layers = (DEPTH, 1) * (options.steps // 2)
    policies = {"full": NeverExit(), "schedule": ScheduleExit(layers), "corrected": CorrectedScheduleExit(layers)}
    table = Table("images", *(f"{name}, s" for name in policies), "compute", "over full", "over schedule")
    for batch in options.batches:
        sample = partial(pipeline, batch_size=batch, num_inference_steps=len(layers), output_type="pt")
        calls = {name: partial(sample, policy=policy) for name, policy in policies.items()}
        compute = calls["corrected"]().trace.compute_fraction
        seconds = median_seconds(calls, options.repeats)
        ratios = (seconds["corrected"] / seconds[name] for name in ("full", "schedule"))
        table.add_row(
            str(batch),
            *(f"{seconds[name]:.3f}" for name in policies),
            f"{compute:.1%}",
            *(f"{ratio:.3f}" for ratio in ratios),
        )
    console = Console(width=120)
    console.print(f"{torch.get_num_threads()} threads, medians of {options.repeats}, torch {torch.__version__}")
    console.print(table)


if __name__ == "__main__":
    main()

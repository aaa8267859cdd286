"""Time a stock pipeline with adadiff enabled, relative to the same pipeline without it.

    OMP_NUM_THREADS=1 python benchmarks/stock_overhead.py

A DiT with random weights, whose blocks take hundreds of millions of FLOPs, is sampled in turns: disabled, enabled with
all layers at every step, and with corrected schedules, whose compute fraction is counted on real calls. What is printed
is the median over the repeats of each time over that of the disabled pipeline in the same turn.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from rich.console import Console
from rich.table import Table

import adadiff
from adadiff import CorrectedScheduleExit, ExitPolicy, NeverExit
from adadiff.calibration.stock import StockSampling
from adadiff.stock import StockSampler
from adadiff.stock.switch import switch_on
from adadiff.utils.timing import interleaved_seconds


def make_pipeline(width: int, layers: int, size: int) -> Any:
    """Make a DiT with random weights, in a pipeline with a small autoencoder.

    Args:
        width: Width of the tokens, a multiple of 64.
        layers: Number of layers.
        size: Height and width of the latents; tokens are patches of 2 x 2.
    """
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(width // 64, 64, 4, 4, num_layers=layers, sample_size=size).eval()
    autoencoder = AutoencoderKL(block_out_channels=(4,), latent_channels=4, norm_num_groups=2)
    return DiTPipeline(transformer, autoencoder, DDIMScheduler(clip_sample=False))


def main() -> None:
    """Read the options, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    pipe = make_pipeline(options.width, options.layers, options.size)
    sampler = StockSampler(pipe, [1], 0, {"num_inference_steps": options.steps, "guidance_scale": 1.0})
    costs = StockSampling(sampler, (1,), None, "latent").costs
    every_second = CorrectedScheduleExit((options.layers, 1) * (options.steps // 2))
    every_second_0 = CorrectedScheduleExit((options.layers, 0) * (options.steps // 2))
    policies: dict[str, ExitPolicy | None] = {
        "disabled": None,
        "all layers": NeverExit(),
        "every second step, else layer 1": every_second,
        "every second step, else layer 0": every_second_0,
    }
    compute = {"disabled": 1.0}

    def sample(name: str, policy: ExitPolicy | None) -> None:
        adadiff.disable(pipe)
        if policy is None:
            sampler(range(options.batch_size))
            return
        switch_on(pipe, policy, costs=costs)
        sampler(range(options.batch_size))
        compute[name] = adadiff.trace(pipe).compute_fraction

    runs = {name: partial(sample, name, policy) for name, policy in policies.items()}
    seconds = interleaved_seconds(runs, options.repeats)
    table = Table("policy", "compute", "time over disabled", "fastest, slowest turn")
    for name, each in seconds.items():
        ratios = [one / disabled for one, disabled in zip(each, seconds["disabled"], strict=True)]
        table.add_row(
            name, f"{compute[name]:.3f}", f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}, {max(ratios):.3f}"
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

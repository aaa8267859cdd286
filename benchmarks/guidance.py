"""Time overhead of guidance: tied pairs against one batch of twice the size without guidance.

U-ViT-S/2 size with classes, random weights, equal exit layers in both variants. One process, variants timed
alternately, medians; results are printed, not asserted.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from adaptive_depth import DEPTH, UVIT_S2, AskedExit
from rich.console import Console
from rich.table import Table

from adadiff import AdaDiffPipeline, AdaptiveModel
from adadiff.training.config import DiffusionConfig
from adadiff.utils.timing import median_seconds

CLASSES = 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16])
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = {**UVIT_S2, "num_classes": CLASSES}
    model = AdaptiveModel(sample_size=32, in_channels=3, backbone_config=sizes, null_class=CLASSES - 1).eval()
    pipeline = AdaDiffPipeline(model, DiffusionConfig().build())
    pipeline.set_progress_bar_config(disable=True)
    table = Table(
        "images", "layers", "twice the batch, s", "guided pairs, s", "time ratio", "at most", title="guidance"
    )
    for batch in options.batches:
        layers = tuple(1 + k * DEPTH // batch for k in range(batch))
        sample = partial(pipeline, num_inference_steps=options.steps, policy=AskedExit(layers), output_type="pt")
        calls = {
            "twice": partial(sample, class_labels=[0] * batch + [CLASSES - 1] * batch),
            "guided": partial(sample, class_labels=[0] * batch, guidance_scale=2.0),
        }
        fractions = {name: call().trace.layer_fraction for name, call in calls.items()}
        assert fractions["twice"] == fractions["guided"]
        seconds = median_seconds(calls, options.repeats)
        ratio = seconds["guided"] / seconds["twice"]
        twice, guided = f"{seconds['twice']:.3f}", f"{seconds['guided']:.3f}"
        table.add_row(str(batch), f"{fractions['guided']:.1%}", twice, guided, f"{ratio:.3f}", "1.050")
    console = Console(width=120)
    console.print(f"{torch.get_num_threads()} threads, medians of {options.repeats}, torch {torch.__version__}")
    console.print(table)


if __name__ == "__main__":
    main()

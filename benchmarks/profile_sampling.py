"""Profile sampling: print the operators that take the most time, and write a trace of all of them.

The trace opens in chrome://tracing or https://ui.perfetto.dev.
"""

# Not called profile.py: that would hide Python's own module of this name from every script in this folder.

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import tyro
from torch.profiler import ProfilerActivity, profile

from adadiff import AdaDiffPipeline, InputError, NeverExit, load_policy
from adadiff.utils.ranges import Count, GuidanceScale, check_ranges


@dataclass(frozen=True)
class Options:
    """What is sampled, and what is shown of it."""

    model: str = "digits"
    """Name of a packaged model, or a model folder."""
    images: Count = 8
    """Number of images, sampled in one batch."""
    steps: Count = 10
    """Sampling steps."""
    full: bool = False
    """Run all layers at every step instead of the model's calibrated exit policy."""
    guidance_scale: GuidanceScale = 1.0
    """Strength of classifier-free guidance; 1 means none."""
    prompt: str = "red apple"
    """Text of all images, for a model that takes text."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """Where the model runs."""
    rows: Count = 20
    """Number of operators in the table."""
    trace: Path = Path("runs/profile.json")
    """Trace file to write."""


def contents(pipeline: AdaDiffPipeline, options: Options) -> dict[str, Any]:
    """Return the pipeline's arguments that say what the images show: classes in turns, the prompt, or only how many."""
    if pipeline.transformer.backbone.context_shape is not None:
        return {"prompt": [options.prompt] * options.images}
    if pipeline.transformer.class_indices:
        return {"class_labels": list(islice(cycle(pipeline.transformer.class_indices), options.images))}
    return {"batch_size": options.images}


def run(options: Options) -> None:
    """Sample once to warm up and once under the profiler, print the table and write the trace."""
    check_ranges(options)
    pipeline = AdaDiffPipeline.from_pretrained(options.model).to(options.device)
    pipeline.set_progress_bar_config(disable=True)
    policy = NeverExit() if options.full else load_policy(options.model).stretched(options.steps)
    sample = partial(
        pipeline,
        **contents(pipeline, options),
        num_inference_steps=options.steps,
        guidance_scale=options.guidance_scale,
        policy=policy,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    )
    sample()
    on_gpu = torch.device(options.device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        trace = sample().trace
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=options.rows, max_name_column_width=40))
    options.trace.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(options.trace))
    print(
        f"{options.images} images, {options.steps} steps, {torch.get_num_threads()} threads, {options.device}: "
        f"compute {trace.compute_fraction:.1%} of the full model's; the trace is {options.trace}"
    )


def main() -> None:
    try:
        run(tyro.cli(Options, description=__doc__))
    except InputError as error:
        print(f"profile_sampling: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

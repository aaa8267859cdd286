"""Ways to sample a stock diffusers pipeline with less compute, at equal compute and from the same noise.

    python benchmarks/stock_caches.py runs/digits-dit --scheduler ddim --steps 50 --guidance 4 --out results

Compared are adaptive depth (`adadiff.calibrate`), fewer steps, and the caches of diffusers, on a DiTPipeline or
PixArtSigmaPipeline as `examples/train_stock_dit.py` saves them. For each compute target every method is given the
setting that errs least on a pilot batch, of those that spend at most the target and 2 points; its figures come from
other samples.

With `--out` each cell is stored as soon as it is measured, and not measured again. Results are printed, not asserted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from stock_cache_dit import db_cache
from stock_measure import Bench, Cell, Images, Results
from stock_methods import FewerSteps, Method, Ours, caches
from stock_report import details, overview, plot
from tqdm import tqdm

import adadiff
from adadiff.calibration.result import Calibration
from adadiff.utils.errors import InputError
from adadiff.utils.fingerprints import fingerprint, weights_of

SCHEDULERS = {"ddim": DDIMScheduler, "dpm-solver++": DPMSolverMultistepScheduler}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure what is not yet measured, and print the tables."""
    options = parser().parse_args(arguments)
    pipe = load(options.model, options.scheduler)
    prompts = options.prompts.read_text().splitlines() if options.prompts else list(range(10))
    real = Images(options.data, pipe, options.quality) if options.quality else None
    bench = Bench(pipe, prompts, call_arguments(pipe, options), options.samples, options.batch_size, real)
    scheduler = options.scheduler.rstrip("+")  # a file name without signs that links would have to escape
    name = f"{options.model.resolve().name}-{scheduler}-{options.steps}-guidance-{options.guidance:g}"
    settings = {
        **{key: getattr(options, key) for key in ("steps", "guidance", "scheduler", "samples", "batch_size")},
        **{key: getattr(options, key) for key in ("quality", "calibration_samples", "repeats")},
        "weights": fingerprint(weights_of(pipe.transformer)),
        "threads": torch.get_num_threads(),
        "versions": {package: importlib.metadata.version(package) for package in ("torch", "diffusers")},
    }
    results = Results(None if options.out is None else options.out / f"{name}.json", settings)
    cells = measure(bench, options, results)
    title = f"{name}: {bench.samples} samples, batches of {options.batch_size}, {settings['threads']} thread(s)"
    text = "\n\n".join([f"### {title}", overview(cells), details(cells)])
    print(text)
    if options.out is not None:
        (options.out / f"{name}.md").write_text(text + "\n")
        plot(cells, name, options.out / f"{name}.png")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", type=Path, help="folder of a DiTPipeline or PixArtSigmaPipeline")
    made.add_argument("--scheduler", choices=SCHEDULERS, default="dpm-solver++")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--guidance", type=float, default=4.0, help="guidance scale; 1 for none")
    made.add_argument("--prompts", type=Path, help="file of prompts, one a line; by default classes 0 to 9")
    made.add_argument("--targets", type=float, nargs="*", default=[0.30, 0.45, 0.55, 0.70], help="compute fractions")
    made.add_argument("--samples", type=int, default=128, help="samples per cell")
    made.add_argument("--batch-size", type=int, default=16)
    made.add_argument("--calibration-samples", type=int, default=32)
    made.add_argument("--repeats", type=int, default=5, help="timed batches, in turns with the full model's")
    made.add_argument("--quality", type=int, default=0, help="images per Fréchet distance, on the small features")
    made.add_argument("--data", default="digits", help="real images, as adadiff evaluate takes them")
    made.add_argument("--again", help="measure methods whose name begins so again")
    made.add_argument("--out", type=Path, help="folder for the results")
    return made


def load(folder: Path, scheduler: str) -> Any:
    """Load a pipeline with a scheduler of the given name."""
    pipe = DiffusionPipeline.from_pretrained(folder).to(torch.float32)
    pipe.scheduler = SCHEDULERS[scheduler].from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_arguments(pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the pipeline's call, which for PixArt keep its size and its number of tokens."""
    known = inspect.signature(type(pipe).__call__).parameters
    own = {"use_resolution_binning": False, "clean_caption": False}
    if "max_sequence_length" in known:
        own["max_sequence_length"] = pipe.tokenizer.model_max_length
    given = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    return given | {name: value for name, value in own.items() if name in known}


def measure(bench: Bench, options: argparse.Namespace, results: Results) -> list[Cell]:
    """Return all cells, those of earlier calls too, after measuring what is not known of the methods and targets."""
    if "full" not in results.cells:
        results.add("full", bench.full_cell(options.repeats))
    targets = sorted(options.targets)
    for method in methods(bench, options):
        for target in tqdm(targets, desc=method.name):
            key = f"{method.name} at {target:.0%}"
            again = options.again and key.startswith(options.again)
            if again or key not in results.cells:
                results.add(key, cell(bench, method, target, options.repeats))
    return list(results.cells.values())


def methods(bench: Bench, options: argparse.Namespace) -> list[Method]:
    """Return the methods to compare."""

    def calibrate(compute: float, steps: int) -> Calibration:
        return adadiff.calibrate(
            bench.pipe,
            bench.prompts,
            compute=compute,
            samples=options.calibration_samples,
            batch_size=options.batch_size,
            **bench.arguments | {"num_inference_steps": steps},
        )

    pipe, steps = bench.pipe, options.steps
    ours = Ours("ours", pipe, steps, (steps,), calibrate)
    both = Ours("ours with fewer steps", pipe, steps, (round(0.5 * steps), round(0.7 * steps)), calibrate)
    made = [ours, both, FewerSteps(steps), *caches(pipe, steps, bench.sample_pilot)]
    if importlib.util.find_spec("cache_dit") is None:
        print("cache-dit is not installed: DBCache is not measured", file=sys.stderr)
        return made
    return [*made, db_cache(pipe, steps)]


def cell(bench: Bench, method: Method, target: float, repeats: int) -> Cell:
    """Measure a method at a compute target; a cell without a setting if the method cannot meet it."""
    try:
        return bench.cell(method, target, repeats)
    except InputError as error:
        return Cell(method.name, target, note=str(error))


if __name__ == "__main__":
    main()

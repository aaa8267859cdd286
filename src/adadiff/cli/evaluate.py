"""`adadiff evaluate`: compare sampled images with real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from adadiff.cli.options import ModelFolder, SampleOptions
from adadiff.cli.output import console, print_description
from adadiff.data import DataConfig
from adadiff.evaluation.packaged import PACKAGED
from adadiff.utils.ranges import checked

MANY_IMAGES = SampleOptions(n=10_000)


@checked
def evaluate_command(
    model: Positional[ModelFolder],
    out: Path,
    data: DataConfig,
    options: Annotated[SampleOptions, arg(name="")] = MANY_IMAGES,
    features: tuple[str, ...] = tuple(PACKAGED),
    clip: str | None = None,
) -> None:
    """Sample images as `adadiff sample` does, compare them with real ones, and write metrics.json.

    By each feature network: Fréchet distance, kernel distance (KID), precision and recall; for classes, how often it
    recognises the requested one if it knows them. Once: saturation; for prompts, the CLIP score. After an interruption
    the same command continues. Several processes: `torchrun --nproc_per_node 2 -m adadiff evaluate ...`; many machines,
    for the sampling: --cluster.

    Args:
        model: Model folder, as `adadiff train` makes it, or the name of a packaged model.
        out: Folder for the images and metrics.json.
        data: Real images; they are converted to the size and channels of the model's.
        options: Which images to sample, with which settings.
        features: Feature networks, one or more: small, unlabelled and statistics (packaged), inception (needs
            adadiff[metrics]), a folder or TorchScript file of a network, or package.module:name.
        clip: CLIP model of transformers for the CLIP score of prompts, by its name on the hub or its folder.
    """
    from adadiff.cli.shared import device_of, sample_with_options
    from adadiff.evaluation.evaluate import METRICS, evaluate_folder, evaluation_table
    from adadiff.evaluation.evaluator import evaluator_for
    from adadiff.utils.processes import process_state

    with process_state().main_process_first():
        evaluator = evaluator_for(model, data, features, clip, device_of(options.device))
    if process_state().is_main_process:
        print_description(evaluator.data)
    evaluator.require_enough(options.n)
    summary, _ = sample_with_options(model, out, options)
    if process_state().is_main_process:
        evaluation = evaluate_folder(out, summary, evaluator)
        console.print(evaluation_table(evaluation))
        console.print(f"the metrics are in {out / METRICS}")

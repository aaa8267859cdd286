"""`adadiff compare`: compare our exits with other methods."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from adadiff.cli.options import Cluster
from adadiff.cli.output import console
from adadiff.utils.errors import InputError
from adadiff.utils.files import model_folder

if TYPE_CHECKING:
    from adadiff.comparison import CompareConfig, PlansConfig


def compare_command(config: Positional[str], out: Path, so_far: bool = False, cluster: Cluster = None) -> None:
    """Compare our exits with other methods: train or search what is missing, evaluate everything, write the report.

    The folder gets index.html (everything on one page), report.md and results.json. After an interruption the same
    command continues.

    Args:
        config: The comparison: digits, digits-policies, cifar10, cifar10-policies, cifar10-guided-policies, which train
            a network for each method and compare at equal compute; cifar10-plans, which tunes the sampling plan of each
            method by the same search; or a JSON file like theirs, for plans of a stock diffusers pipeline too.
        out: Folder for the report.
        so_far: Write the report of the finished cells, without training or sampling; not for tuned plans.
        cluster: Sample the images on a Ray cluster: HOST:PORT, auto for the one that this machine is part of, or
            nothing to start one of this machine's cores or GPUs. Networks are trained, exits recorded and methods timed
            in this process. Needs adadiff[cluster].
    """
    from adadiff.comparison import PlansConfig, load_config

    chosen = load_config(config)
    if isinstance(chosen, PlansConfig):
        if so_far:
            raise InputError("a comparison of tuned plans has no report before it has finished: leave --so-far out")
        _compare_plans(chosen, out, cluster)
    else:
        _compare(chosen, out, so_far, cluster)
    console.print(f"the report is {out / 'index.html'}")


def _compare(config: CompareConfig, out: Path, so_far: bool, cluster: str | None) -> None:
    from adadiff.cli.shared import spread_over
    from adadiff.comparison import compare, winner_in_words, write_report
    from adadiff.training import Interrupted

    try:
        with spread_over(cluster, "auto") as spread:
            results = compare(config, out, so_far, spread)
    except Interrupted as interruption:
        console.print(f"{interruption}; run the same command again to continue")
        sys.exit(130)
    write_report(results, out)
    console.print(winner_in_words(results))


def _compare_plans(config: PlansConfig, out: Path, cluster: str | None) -> None:
    from adadiff.cli.options import FitOptions
    from adadiff.cli.shared import device_of
    from adadiff.cli.tunable import loaded_tunable
    from adadiff.comparison import compare_plans, verdicts_in_words, write_plans_report
    from adadiff.data import DataConfig
    from adadiff.evaluation.evaluator import evaluator_of

    data = DataConfig(source=config.reference, split=config.reference_split, image_column=config.image_column)
    networks = (*config.features, *config.judges)
    options = FitOptions(
        steps=config.steps,
        scheduler=config.scheduler,
        guidance_scale=config.guidance_scale,
        prompts=None if config.prompts is None else Path(config.prompts),
        class_index=config.class_index,
        argument=config.argument,
        dtype=config.dtype,
    )
    with loaded_tunable(model_folder(config.model), options, cluster) as tunable:
        takes_text = bool(tunable.prompts)
        evaluator = evaluator_of(tunable.image_shape, takes_text, data, networks, None, device_of("auto"))
        results = compare_plans(config, tunable, evaluator, out)
    write_plans_report(results, out)
    for sentence in verdicts_in_words(results):
        console.print(sentence, markup=False, highlight=False)

"""`adadiff compare`: compare our exits with other methods."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from adadiff.cli.output import console
from adadiff.utils.errors import InputError

if TYPE_CHECKING:
    from adadiff.comparison import CompareConfig, PlansConfig


def compare_command(config: Positional[str], out: Path, so_far: bool = False) -> None:
    """Compare our exits with other methods: train or search what is missing, evaluate everything, write the report.

    The folder gets index.html (everything on one page), report.md and results.json. After an interruption the same
    command continues.

    Args:
        config: The comparison: digits, digits-policies, cifar10, cifar10-policies, cifar10-guided-policies, which train
            a network for each method and compare at equal compute; cifar10-plans, which tunes the sampling plan of each
            method by the same search; or a JSON file like theirs.
        out: Folder for the report.
        so_far: Write the report of the finished cells, without training or sampling; not for tuned plans.
    """
    from adadiff.comparison import PlansConfig, load_config

    chosen = load_config(config)
    if isinstance(chosen, PlansConfig):
        if so_far:
            raise InputError("a comparison of tuned plans has no report before it has finished: leave --so-far out")
        _compare_plans(chosen, out)
    else:
        _compare(chosen, out, so_far)
    console.print(f"the report is {out / 'index.html'}")


def _compare(config: CompareConfig, out: Path, so_far: bool) -> None:
    from adadiff.comparison import compare, winner_in_words, write_report
    from adadiff.training import Interrupted

    try:
        results = compare(config, out, so_far)
    except Interrupted as interruption:
        console.print(f"{interruption}; run the same command again to continue")
        sys.exit(130)
    write_report(results, out)
    console.print(winner_in_words(results))


def _compare_plans(config: PlansConfig, out: Path) -> None:
    from adadiff.cli.shared import device_of, load_with_default_plan
    from adadiff.comparison import compare_plans, verdicts_in_words, write_plans_report
    from adadiff.data import DataConfig
    from adadiff.evaluation.evaluator import evaluator_for
    from adadiff.utils.files import model_folder

    folder = model_folder(Path(config.model))
    pipeline, default = load_with_default_plan(folder, config.dtype, "auto")
    data = DataConfig(source=config.reference, split=config.reference_split, image_column=config.image_column)
    evaluator = evaluator_for(folder, data, (*config.features, *config.judges), None, device_of("auto"))
    results = compare_plans(config, pipeline, default, evaluator, out)
    write_plans_report(results, out)
    for sentence in verdicts_in_words(results):
        console.print(sentence, markup=False, highlight=False)

"""`adadiff train`: train a model from a preset."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import arg

from adadiff.cli.output import console

if TYPE_CHECKING:
    from adadiff.training import TrainConfig


def training_presets() -> Any:
    """Build the type from which tyro makes one subcommand per preset."""
    from adadiff.training.presets import PRESETS

    return tyro.extras.subcommand_type_from_defaults(
        {name: preset.train for name, preset in PRESETS.items()},
        {name: preset.description for name, preset in PRESETS.items()},
    )


def train_command(config: Annotated[Any, arg(name="", constructor_factory=training_presets)]) -> None:
    """Train a model from a preset: `adadiff train digits`, `adadiff train images --data.source FOLDER`.

    Any field of the preset can be changed by its option. The resolved configuration is saved as train.json next to the
    model. Ctrl-C saves a checkpoint and stops; the same command with --resume continues. Several processes or GPUs:
    `torchrun --nproc_per_node 2 -m adadiff train ...`.
    """
    from adadiff.training import Interrupted, train
    from adadiff.utils.processes import process_state

    chosen: TrainConfig = config
    try:
        train(chosen)
    except Interrupted as interruption:
        console.print(f"{interruption}; to continue, run the same command with --resume")
        sys.exit(130)
    if process_state().is_main_process:
        console.print(f"the model is in {chosen.out}; to sample: adadiff sample {chosen.out} --out samples")

"""The folder of a training run: its recorded configuration, checks before anything is written, the final model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from adadiff.data import LabelledData
from adadiff.sampling import AdaptivePipeline
from adadiff.training.checkpoints import list_checkpoints, set_aside
from adadiff.training.config import TrainConfig
from adadiff.utils.errors import InputError
from adadiff.utils.files import atomic_folder, difference, read_json, require_empty_folder
from adadiff.utils.fingerprints import fingerprint, weights_of

TRAIN_CONFIG = "train.json"
MAY_CHANGE_ON_RESUME = (
    *("out", "resume", "steps", "workers", "sampling", "max_bad_steps"),
    *("checkpoint_every", "keep_checkpoints", "sample_every", "log_every"),
)


def describe_run(config: TrainConfig, images: LabelledData, pipeline: AdaptivePipeline) -> dict[str, Any]:
    """Describe a run as plain values: its configuration, and fingerprints of the data and the frozen parts."""
    frozen = {"vae": pipeline.vae, "text_encoder": pipeline.text_encoder if _is_frozen(pipeline) else None}
    trained_on = {
        "data": images.identity(),
        **{name: fingerprint(weights_of(part)) for name, part in frozen.items() if part is not None},
    }
    described = {**dataclasses.asdict(config), "model": config.model.describe(), "trained_on": trained_on}
    return json.loads(json.dumps(described, default=str))


def _is_frozen(pipeline: AdaptivePipeline) -> bool:
    return pipeline.text_encoder is not None and pipeline.text_encoder.frozen


def check_run(config: TrainConfig, description: Mapping[str, Any]) -> None:
    """Check that the run's folder is empty or, when resuming, that it holds a run with the same description.

    Raises:
        InputError: If the folder is not empty, or the run to resume has other settings.
    """
    path = config.out / TRAIN_CONFIG
    if not config.resume:
        try:
            require_empty_folder(config.out)
        except InputError as error:
            raise InputError(f"{error}; to continue the run in it, add --resume") from None
        return
    if not path.is_file():
        raise InputError(f"{config.out} holds no run to resume: start without --resume, or choose another --out")
    earlier = read_json(path)
    for name, value in description.items():
        if name not in MAY_CHANGE_ON_RESUME and earlier.get(name) != value:
            raise InputError(
                f"{config.out} was trained with {difference(name, earlier.get(name), value)}: resume with the same "
                f"value, or choose another --out"
            )


def report_start(config: TrainConfig, images: LabelledData, checkpoint: Path | None, damaged: Sequence[str]) -> None:
    """Print the training data and the starting point, and move damaged checkpoints aside."""
    for line in images.describe():
        tqdm.write(line)
    for message, path in zip(damaged, reversed(list_checkpoints(config.out)), strict=False):
        tqdm.write(f"{message}; it was renamed to {set_aside(path)}")
    if config.resume:
        start = "from the beginning: there is no checkpoint yet" if checkpoint is None else f"from {checkpoint}"
        tqdm.write(f"continuing {start}")


def save_model(pipeline: AdaptivePipeline, run: Path) -> None:
    """Write the pipeline's parts into the run's folder, replacing earlier ones.

    The index is removed first and written last: a folder left incomplete by an interruption has no index and cannot
    be loaded, so old and new parts are never mixed.
    """
    staging, index = run / ".model", "model_index.json"
    with atomic_folder(staging) as part:
        pipeline.save_pretrained(part)
    (run / index).unlink(missing_ok=True)
    for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == index):
        if entry.is_dir():
            shutil.rmtree(run / entry.name, ignore_errors=True)
        entry.replace(run / entry.name)
    staging.rmdir()

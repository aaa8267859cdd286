"""Checkpoints of a run: written whole or not at all, the last few kept."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adadiff.errors import InputError
from adadiff.files import part_path, whole_folder

EMA_WEIGHTS = "ema.safetensors"


def list_checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def checkpoint_step(checkpoint: Path) -> int:
    """The number of steps done when the checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(accelerator: Accelerator, ema: EMAModel, run: Path, step: int, keep: int) -> None:
    """Write a checkpoint, then remove all but the last `keep`.

    Raises:
        InputError: If it cannot be written; the checkpoints before it are untouched.
    """
    path = run / "checkpoints" / f"step-{step:08d}"
    part_of_main = whole_folder(path) if accelerator.is_main_process else nullcontext(part_path(path))
    try:
        with part_of_main as part:
            accelerator.wait_for_everyone()
            accelerator.save_state(str(part))
            if accelerator.is_main_process:
                names = (str(number) for number in range(len(ema.shadow_params)))
                save_file(dict(zip(names, ema.shadow_params, strict=True)), part / EMA_WEIGHTS)
            accelerator.wait_for_everyone()
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the checkpoint {path} could not be written ({reason}): free some space and go on with --resume from "
            f"the one before"
        ) from error
    if accelerator.is_main_process:
        for old in list_checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_last_checkpoint(accelerator: Accelerator, ema: EMAModel, run: Path) -> int:
    """Restore weights, optimizer, learning-rate schedule and moving average; returns the steps done.

    Raises:
        InputError: If the run has no checkpoint, or it cannot be read.
    """
    checkpoints = list_checkpoints(run)
    if not checkpoints:
        raise InputError(f"{run} has no checkpoint to resume from: start without --resume")
    last = checkpoints[-1]
    try:
        accelerator.load_state(str(last))
        shadow = load_file(last / EMA_WEIGHTS)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the checkpoint {last} cannot be read ({reason}): delete it to go on from the one before"
        ) from error
    step = checkpoint_step(last)
    ema.load_state_dict(
        {
            **ema.state_dict(),
            "shadow_params": [shadow[str(number)] for number in range(len(shadow))],
            "optimization_step": step,
        }
    )
    ema.to(accelerator.device)
    return step

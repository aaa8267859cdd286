"""Checkpoints of a run: written atomically with checksums, rotated, and skipped if damaged."""

from __future__ import annotations

import re
import shutil
from contextlib import nullcontext
from pathlib import Path

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adadiff.utils.errors import InputError, one_line
from adadiff.utils.files import CHECKSUMS, atomic_folder, part_path, verify_checksums, write_checksums

EMA_WEIGHTS = "ema.safetensors"
NAME = re.compile(r"step-(\d{8,})")


def list_checkpoints(run: Path) -> list[Path]:
    """List the run's checkpoints, oldest first; links, and anything of another name, are ignored."""
    folder = run / "checkpoints"
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted((path for path in found if path.is_dir() and not path.is_symlink()), key=checkpoint_step)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the number of optimizer steps that were done when the checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(accelerator: Accelerator, ema: EMAModel, run: Path, step: int, keep: int) -> None:
    """Write a checkpoint, then remove all but the last `keep`.

    Raises:
        InputError: If the checkpoint cannot be written; earlier ones are left as they are.
    """
    path = run / "checkpoints" / f"step-{step:08d}"
    part_of_main = atomic_folder(path) if accelerator.is_main_process else nullcontext(part_path(path))
    try:
        with part_of_main as part:
            accelerator.wait_for_everyone()
            accelerator.save_state(str(part))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                names = (str(index) for index in range(len(ema.shadow_params)))
                save_file(dict(zip(names, ema.shadow_params, strict=True)), part / EMA_WEIGHTS)
                write_checksums(part)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = one_line(error)
        raise InputError(
            f"the checkpoint {path} could not be written ({reason}): free some disk space, then run again with "
            f"--resume, which continues from the checkpoint before"
        ) from error
    if accelerator.is_main_process:
        for old in list_checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def last_sound_checkpoint(run: Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint whose files match their checksums.

    Returns:
        Its folder, or None if the run has no checkpoint yet; and one message for each newer, damaged checkpoint.

    Raises:
        InputError: If all of them are damaged.
    """
    checkpoints, damaged = list_checkpoints(run), []
    for checkpoint in reversed(checkpoints):
        try:
            if not (checkpoint / CHECKSUMS).is_file():
                raise InputError(f"{checkpoint / CHECKSUMS} is missing")
            verify_checksums(checkpoint)
        except (InputError, OSError) as error:
            damaged.append(f"the checkpoint {checkpoint} is damaged: {str(error).partition(':')[0]}")
        else:
            return checkpoint, damaged
    if checkpoints:
        raise InputError(f"{damaged[0]}, and so are all earlier ones: train again with another --out")
    return None, []


def set_aside(damaged: Path) -> Path:
    """Rename a damaged checkpoint, so that it is not used again but can still be inspected; return its new path."""
    aside = damaged.with_name(f"{damaged.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return damaged.rename(aside)


def load_checkpoint(accelerator: Accelerator, ema: EMAModel, checkpoint: Path) -> int:
    """Restore weights, optimizer, learning-rate schedule, random state and moving average; return the steps done.

    Raises:
        InputError: If the checkpoint cannot be read or does not fit this training run.
    """
    try:
        accelerator.load_state(str(checkpoint))
        shadow = load_file(checkpoint / EMA_WEIGHTS)
        step = checkpoint_step(checkpoint)
        ema.load_state_dict(
            {
                **ema.state_dict(),
                "shadow_params": [shadow[str(index)] for index in range(len(shadow))],
                "optimization_step": step,
            }
        )
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = one_line(error)
        raise InputError(
            f"the checkpoint {checkpoint} cannot be read ({reason}): delete it to continue from the one before"
        ) from error
    ema.to(accelerator.device)
    return step

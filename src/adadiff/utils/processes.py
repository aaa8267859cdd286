"""The processes that share a task: a single one, or those that torchrun launched."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState

from adadiff.utils.errors import InputError


def process_state() -> PartialState:
    """Return accelerate's state of this process, set up for all processes launched together, on GPUs or a CPU.

    Raises:
        InputError: If several processes were launched, but each sees only itself.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    state = PartialState(cpu=True) if launched > 1 and not _has_accelerator() else PartialState()
    if state.num_processes < launched:
        raise InputError(
            f"{launched} processes were launched, but this one sees only {state.num_processes}, so that each would act "
            f"as the main process: start them with torchrun, and create no accelerate state of your own before"
        )
    return state


def _has_accelerator() -> bool:
    return torch.accelerator.is_available() and torch.accelerator.current_accelerator() != torch.device("mps")

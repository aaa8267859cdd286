"""Models for engines in processes of their own: files say what they do there, as no memory is shared."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch

from adadiff import AdaDiffPipeline
from adadiff.runtime import Inputs
from adadiff.utils.errors import InputError
from tests.serving.traffic import watched

CAT, DOG, OWL = range(3)


def scripted_pipeline(folder: Path) -> AdaDiffPipeline:
    """Load the model of `class_pipeline`, except for what files in the folder demand.

    `load` holds it while it is loaded, `missing` refuses it, `fatal` kills the process instead. While it runs, `tick`
    holds it before a call, and `owl` says what becomes of calls with an owl in them: nan, error or kill.
    """
    while (folder / "load").exists():
        time.sleep(0.005)
    if (folder / "missing").exists():
        raise InputError("there is no model")
    if (folder / "fatal").exists():
        os.kill(os.getpid(), signal.SIGKILL)

    def before(inputs: Inputs) -> None:
        while (folder / "tick").exists():
            time.sleep(0.005)
        if has_owl(inputs) and fate() == "error":
            raise RuntimeError("the device is gone")
        if has_owl(inputs) and fate() == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def after(inputs: Inputs, sample: torch.Tensor) -> None:
        if fate() == "nan":
            sample[inputs.conditions["class_labels"] == OWL] = torch.nan

    def has_owl(inputs: Inputs) -> bool:
        return bool((inputs.conditions["class_labels"] == OWL).any())

    def fate() -> str:
        owl = folder / "owl"
        return owl.read_text() if owl.exists() else ""

    return watched(before, after)

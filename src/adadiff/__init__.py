"""Adaptive-depth diffusion: each sample leaves the diffusion transformer as soon as it may."""

from diffusers import ModelMixin  # diffusers looks for the base class here when it loads our models

from adadiff.errors import InputError
from adadiff.exits import (
    AdaptiveModel,
    BatchMeanExit,
    CorrectedScheduleExit,
    ExitPolicy,
    FixedExit,
    NeverExit,
    PatienceExit,
    ScheduleExit,
    TableExit,
    ThresholdExit,
)
from adadiff.exits.trace import Trace
from adadiff.policies.stored import load_policy
from adadiff.sampling import AdaDiffPipeline

__version__ = "0.1.0"

__all__ = [
    "AdaDiffPipeline",
    "AdaptiveModel",
    "BatchMeanExit",
    "CorrectedScheduleExit",
    "ExitPolicy",
    "FixedExit",
    "InputError",
    "ModelMixin",
    "NeverExit",
    "PatienceExit",
    "ScheduleExit",
    "TableExit",
    "ThresholdExit",
    "Trace",
    "load_policy",
]

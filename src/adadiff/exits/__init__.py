"""What the paper adds to a backbone: output heads at every layer, uncertainty estimators, losses and exit policies."""

from adadiff.exits.adaptive import AdaptiveModel, AdaptiveOutput
from adadiff.policies import (
    BatchMeanExit,
    CorrectedScheduleExit,
    ExitPolicy,
    ExitQuery,
    FixedExit,
    NeverExit,
    PatienceExit,
    ScheduleExit,
    TableExit,
    ThresholdExit,
)

__all__ = [
    "AdaptiveModel",
    "AdaptiveOutput",
    "BatchMeanExit",
    "CorrectedScheduleExit",
    "ExitPolicy",
    "ExitQuery",
    "FixedExit",
    "NeverExit",
    "PatienceExit",
    "ScheduleExit",
    "TableExit",
    "ThresholdExit",
]

"""What the paper adds to a backbone: exits, uncertainty estimators, losses, and rules for leaving."""

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

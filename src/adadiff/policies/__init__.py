"""Exit policies: the rules by which samples leave the network."""

from adadiff.policies.base import POLICIES, ExitPolicy, ExitQuery
from adadiff.policies.schedules import CorrectedScheduleExit, FixedExit, NeverExit, ScheduleExit
from adadiff.policies.thresholds import BatchMeanExit, PatienceExit, TableExit, ThresholdExit

__all__ = [
    "POLICIES",
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

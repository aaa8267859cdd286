"""Exit policies: the rules that decide after which layer each sample exits."""

from adadiff.policies.base import LINE, POLICIES, ExitPolicy, ExitQuery
from adadiff.policies.schedules import CorrectedScheduleExit, FixedExit, NeverExit, ScheduleExit
from adadiff.policies.thresholds import BatchMeanExit, PatienceExit, TableExit, ThresholdExit

__all__ = [
    "LINE",
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

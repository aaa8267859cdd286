"""What the paper adds to a backbone: exits, uncertainty estimators, losses, and rules for leaving."""

from adadiff.exits.adaptive import AdaptiveModel, AdaptiveOutput
from adadiff.exits.policies import ExitPolicy, ExitQuery, FixedExit, NeverExit, PatienceExit, ThresholdExit

__all__ = [
    "AdaptiveModel",
    "AdaptiveOutput",
    "ExitPolicy",
    "ExitQuery",
    "FixedExit",
    "NeverExit",
    "PatienceExit",
    "ThresholdExit",
]

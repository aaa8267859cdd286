"""A budget or a bound on the error in, an exit policy out."""

from adadiff.calibration.calibrate import Calibration, Goal, calibrate

__all__ = ["Calibration", "Goal", "calibrate"]

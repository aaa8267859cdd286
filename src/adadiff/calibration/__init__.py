"""A budget or a bound on the error in, an exit policy out."""

from adadiff.calibration.goals import Calibration, Goal, calibrate
from adadiff.calibration.report import calibration_table, draw_calibration

__all__ = ["Calibration", "Goal", "calibrate", "calibration_table", "draw_calibration"]

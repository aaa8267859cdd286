"""Calibration: find the exit policy that meets a compute budget, a speedup, or a bound on the error."""

from adadiff.calibration.goal import Goal
from adadiff.calibration.report import calibration_table, draw_calibration
from adadiff.calibration.result import Calibration
from adadiff.calibration.run import calibrate

__all__ = ["Calibration", "Goal", "calibrate", "calibration_table", "draw_calibration"]

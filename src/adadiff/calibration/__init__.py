"""Calibration: find the exit policy that meets a compute budget, a speedup, or a bound on the error."""

from typing import TYPE_CHECKING

from adadiff.calibration.goal import Goal
from adadiff.utils.lazy import lazy_names

if TYPE_CHECKING:
    from adadiff.calibration.report import calibration_table, draw_calibration
    from adadiff.calibration.result import Calibration
    from adadiff.calibration.run import calibrate
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "adadiff.calibration.report": ["calibration_table", "draw_calibration"],
            "adadiff.calibration.result": ["Calibration"],
            "adadiff.calibration.run": ["calibrate"],
        },
    )

__all__ = ["Calibration", "Goal", "calibrate", "calibration_table", "draw_calibration"]

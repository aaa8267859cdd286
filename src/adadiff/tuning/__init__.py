"""Tuning: search the sampling plan that gives the best images for a budget of compute."""

from typing import TYPE_CHECKING

from adadiff.tuning.config import TuneConfig
from adadiff.tuning.goal import TuningGoal
from adadiff.utils.lazy import lazy_names

if TYPE_CHECKING:
    from adadiff.tuning.adaptive import TunablePipeline, default_plan
    from adadiff.tuning.report import draw_tuning, outcome_in_words, plans_in_words, tuning_table
    from adadiff.tuning.result import Confirmed, Tuning
    from adadiff.tuning.run import tune
    from adadiff.tuning.stock import TunableStockPipeline
    from adadiff.tuning.tunable import Tunable
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "adadiff.tuning.adaptive": ["TunablePipeline", "default_plan"],
            "adadiff.tuning.report": ["draw_tuning", "outcome_in_words", "plans_in_words", "tuning_table"],
            "adadiff.tuning.result": ["Confirmed", "Tuning"],
            "adadiff.tuning.run": ["tune"],
            "adadiff.tuning.stock": ["TunableStockPipeline"],
            "adadiff.tuning.tunable": ["Tunable"],
        },
    )

__all__ = [
    "Confirmed",
    "Tunable",
    "TunablePipeline",
    "TunableStockPipeline",
    "TuneConfig",
    "Tuning",
    "TuningGoal",
    "default_plan",
    "draw_tuning",
    "outcome_in_words",
    "plans_in_words",
    "tune",
    "tuning_table",
]

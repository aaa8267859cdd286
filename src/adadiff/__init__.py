"""Adaptive-depth diffusion: each sample exits a diffusion transformer as soon as its prediction is certain enough."""

from typing import TYPE_CHECKING

from adadiff.utils.errors import InputError
from adadiff.utils.lazy import lazy_names

if TYPE_CHECKING:
    from adadiff.calibration.stock import calibrate
    from adadiff.exits.adaptive import AdaptiveModel
    from adadiff.pipeline import AdaDiffPipeline
    from adadiff.policies import (
        BatchMeanExit,
        CorrectedScheduleExit,
        ExitPolicy,
        FixedExit,
        NeverExit,
        PatienceExit,
        ScheduleExit,
        TableExit,
        ThresholdExit,
    )
    from adadiff.policies.stored import load_policy
    from adadiff.runtime.trace import Trace
    from adadiff.stock.adapt import adapt
    from adadiff.stock.switch import disable, enable, trace
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "adadiff.calibration.stock": ["calibrate"],
            "adadiff.exits.adaptive": ["AdaptiveModel"],
            "adadiff.runtime.trace": ["Trace"],
            "adadiff.pipeline": ["AdaDiffPipeline"],
            "adadiff.policies": [
                "BatchMeanExit",
                "CorrectedScheduleExit",
                "ExitPolicy",
                "FixedExit",
                "NeverExit",
                "PatienceExit",
                "ScheduleExit",
                "TableExit",
                "ThresholdExit",
            ],
            "adadiff.policies.stored": ["load_policy"],
            "adadiff.stock.adapt": ["adapt"],
            "adadiff.stock.switch": ["disable", "enable", "trace"],
        },
    )

__version__ = "0.1.0"

__all__ = [
    "AdaDiffPipeline",
    "AdaptiveModel",
    "BatchMeanExit",
    "CorrectedScheduleExit",
    "ExitPolicy",
    "FixedExit",
    "InputError",
    "NeverExit",
    "PatienceExit",
    "ScheduleExit",
    "TableExit",
    "ThresholdExit",
    "Trace",
    "adapt",
    "calibrate",
    "disable",
    "enable",
    "load_policy",
    "trace",
]

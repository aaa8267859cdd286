"""A denoiser under an exit policy: each row of a batch at its own step, with its own memory."""

from adadiff.runtime.contract import Denoiser, Inputs, InternalWeights, Prediction, Session
from adadiff.runtime.corrections import Corrections
from adadiff.runtime.exits import ExitNetwork, ExitSession
from adadiff.runtime.extrapolation import newton_terms
from adadiff.runtime.flops import PartFlops
from adadiff.runtime.memory import RowMemory
from adadiff.runtime.planned import planned_flops, planned_layers
from adadiff.runtime.ties import all_tied, any_tied
from adadiff.runtime.trace import Trace, TraceRecorder, TraceTotals

__all__ = [
    "Corrections",
    "Denoiser",
    "ExitNetwork",
    "ExitSession",
    "Inputs",
    "InternalWeights",
    "PartFlops",
    "Prediction",
    "RowMemory",
    "Session",
    "Trace",
    "TraceRecorder",
    "TraceTotals",
    "all_tied",
    "any_tied",
    "newton_terms",
    "planned_flops",
    "planned_layers",
]

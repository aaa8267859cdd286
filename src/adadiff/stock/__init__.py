"""Adaptive depth in any stock diffusers pipeline: enable it, disable it, adapt it, see which layers ran."""

from adadiff.stock.adapt import adapt
from adadiff.stock.adapting.adaptation import Adaptation, FittedExits
from adadiff.stock.costs import LayerCosts
from adadiff.stock.families import FAMILIES, REFUSED, Family
from adadiff.stock.record import Call, StockTrace
from adadiff.stock.samples import StockSampler
from adadiff.stock.stored import StockContext, StockPolicy
from adadiff.stock.switch import disable, enable, trace

__all__ = [
    "FAMILIES",
    "REFUSED",
    "Adaptation",
    "Call",
    "Family",
    "FittedExits",
    "LayerCosts",
    "StockContext",
    "StockPolicy",
    "StockSampler",
    "StockTrace",
    "adapt",
    "disable",
    "enable",
    "trace",
]

"""Adaptive depth in any stock diffusers pipeline: enable it, disable it, see which layers ran."""

from adadiff.stock.costs import LayerCosts
from adadiff.stock.families import FAMILIES, REFUSED, Family
from adadiff.stock.record import Call, StockTrace
from adadiff.stock.samples import StockSampler
from adadiff.stock.stored import StockContext, StockPolicy
from adadiff.stock.switch import disable, enable, trace

__all__ = [
    "FAMILIES",
    "REFUSED",
    "Call",
    "Family",
    "LayerCosts",
    "StockContext",
    "StockPolicy",
    "StockSampler",
    "StockTrace",
    "disable",
    "enable",
    "trace",
]

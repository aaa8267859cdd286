"""Adaptive depth in any stock diffusers pipeline: enable it, disable it, see which layers ran."""

from adadiff.stock.families import FAMILIES, REFUSED, Family
from adadiff.stock.record import Call, StockTrace
from adadiff.stock.switch import disable, enable, trace

__all__ = ["FAMILIES", "REFUSED", "Call", "Family", "StockTrace", "disable", "enable", "trace"]

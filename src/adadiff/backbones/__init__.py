"""Backbones: denoisers whose layers can be run one at a time."""

from typing import Any

from adadiff.backbones.base import Backbone, LayerState
from adadiff.backbones.uvit import UViT

BACKBONES: dict[str, type[Backbone[Any]]] = {"uvit": UViT}

__all__ = ["BACKBONES", "Backbone", "LayerState", "UViT"]

"""Backbones: denoisers whose layers can be run one at a time."""

from adadiff.backbones.base import (
    BACKBONES,
    Backbone,
    BackboneConfig,
    InputSpec,
    LayerState,
    backbone_named,
    backbone_of,
    backbone_settings,
)
from adadiff.backbones.uvit import UViT, UViTConfig

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneConfig",
    "InputSpec",
    "LayerState",
    "UViT",
    "UViTConfig",
    "backbone_named",
    "backbone_of",
    "backbone_settings",
]

"""Conditioning: class names and captions as the inputs of a backbone."""

from adadiff.conditioning.classes import class_indices
from adadiff.conditioning.conditions import (
    ClassCondition,
    Condition,
    FeatureCondition,
    Reads,
    TokenCondition,
    Unconditional,
)
from adadiff.conditioning.text import ByteTextEncoder, TextEncoder, TransformersTextEncoder

__all__ = [
    "ByteTextEncoder",
    "ClassCondition",
    "Condition",
    "FeatureCondition",
    "Reads",
    "TextEncoder",
    "TokenCondition",
    "TransformersTextEncoder",
    "Unconditional",
    "class_indices",
]

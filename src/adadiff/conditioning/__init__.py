"""What the images shall show: from class names and captions to what a backbone takes."""

from adadiff.conditioning.classes import class_indices
from adadiff.conditioning.conditions import (
    ClassCondition,
    Condition,
    FeatureCondition,
    TokenCondition,
    Unconditional,
)
from adadiff.conditioning.text import ByteTextEncoder, TextEncoder, TransformersTextEncoder

__all__ = [
    "ByteTextEncoder",
    "ClassCondition",
    "Condition",
    "FeatureCondition",
    "TextEncoder",
    "TokenCondition",
    "TransformersTextEncoder",
    "Unconditional",
    "class_indices",
]

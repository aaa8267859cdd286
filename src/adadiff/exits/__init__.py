"""What the paper adds to a backbone: exits, uncertainty estimators and losses."""

from adadiff.exits.adaptive import AdaptiveModel

__all__ = ["AdaptiveModel"]

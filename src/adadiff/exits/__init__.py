"""What the paper adds to a backbone: exits, uncertainty estimators and losses."""

from adadiff.exits.adaptive import AdaptiveModel, AdaptiveOutput

__all__ = ["AdaptiveModel", "AdaptiveOutput"]

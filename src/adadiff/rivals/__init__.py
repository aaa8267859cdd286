"""Baselines: other methods that make a diffusion transformer cheaper; docs/rivals.md lists them with sources.

Baselines that are only an exit rule are in `adadiff.policies`, those that are an estimator or a loss in
`adadiff.exits`. This folder has those that change what a step computes, or the network itself.
"""

from adadiff.rivals.caching import FirstBlockCaching, SkipCaching
from adadiff.rivals.duodiff import DuoDiff
from adadiff.rivals.smaller import drop_layers, prune

__all__ = ["DuoDiff", "FirstBlockCaching", "SkipCaching", "drop_layers", "prune"]

"""Baselines: other methods that make a diffusion transformer cheaper; docs/baselines.md lists them with sources.

Baselines that are only an exit rule are in `adadiff.policies`, those that are an estimator or a loss in
`adadiff.exits`. This folder has those that change what a step computes, or the network itself.
"""

from adadiff.baselines.base import Baseline, BaselineSession
from adadiff.baselines.caching import FirstBlockCaching, SkipCaching
from adadiff.baselines.duodiff import DuoDiff
from adadiff.baselines.smaller import drop_layers, prune

__all__ = [
    "Baseline",
    "BaselineSession",
    "DuoDiff",
    "FirstBlockCaching",
    "SkipCaching",
    "drop_layers",
    "prune",
]

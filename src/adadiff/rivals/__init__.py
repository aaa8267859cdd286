"""Other ways to spend less on a diffusion transformer, to be compared with: docs/rivals.md names them with sources.

Those that are an exit rule alone are in `adadiff.policies`, those that are an estimator or a loss beside ours in
`adadiff.exits`; here are the ones that change what a step computes, or the network itself.
"""

from adadiff.rivals.caching import FirstBlockCaching, SkipCaching
from adadiff.rivals.duodiff import DuoDiff
from adadiff.rivals.smaller import drop_layers, prune

__all__ = ["DuoDiff", "FirstBlockCaching", "SkipCaching", "drop_layers", "prune"]

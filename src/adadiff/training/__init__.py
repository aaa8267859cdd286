"""Training: the loop, its configuration, its checkpoints."""

from adadiff.training.config import TrainConfig
from adadiff.training.loop import Diverged, Interrupted, train

__all__ = ["Diverged", "Interrupted", "TrainConfig", "train"]

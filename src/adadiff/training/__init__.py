"""Training: the loop, its configuration, its checkpoints."""

from adadiff.training.config import TrainConfig
from adadiff.training.loop import Interrupted, train

__all__ = ["Interrupted", "TrainConfig", "train"]

"""Training: the loop, its configuration, its checkpoints."""

from adadiff.errors import Diverged
from adadiff.training.config import TrainConfig
from adadiff.training.loop import Interrupted, train

__all__ = ["Diverged", "Interrupted", "TrainConfig", "train"]

"""Training: the loop, its configuration, its checkpoints."""

from adadiff.training.config import TrainConfig
from adadiff.training.loop import Interrupted, train
from adadiff.utils.errors import Diverged

__all__ = ["Diverged", "Interrupted", "TrainConfig", "train"]

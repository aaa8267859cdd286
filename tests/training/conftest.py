"""A training small enough for a test."""

from pathlib import Path

from adadiff.backbones import UViTConfig
from adadiff.data import DataConfig
from adadiff.training.config import ModelConfig, OptimizerConfig, TrainConfig


def tiny_config(out: Path, **changes) -> TrainConfig:
    settings = {
        "out": out,
        "data": DataConfig(size=8, channels=1, flip=True),
        "model": ModelConfig(UViTConfig(patch_size=4, width=16, depth=3, num_heads=2)),
        "optimizer": OptimizerConfig(warmup_steps=2),
        "steps": 6,
        "batch_size": 8,
        "checkpoint_every": 2,
        "sample_every": 0,
        "log_every": 1,
        **changes,
    }
    return TrainConfig(**settings)

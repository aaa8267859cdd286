"""Trainings ready to run, by name."""

from __future__ import annotations

from pathlib import Path

from adadiff.data import DataConfig
from adadiff.training.config import ModelConfig, OptimizerConfig, TrainConfig

PRESETS: dict[str, TrainConfig] = {
    "digits": TrainConfig(
        out=Path("runs/digits"),
        data=DataConfig(source="digits", size=8, channels=1, flip=False),
        model=ModelConfig(patch_size=2, width=64, depth=9, num_heads=4),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=200, ema_decay=0.999),
        steps=10_000,
        batch_size=128,
        mixed_precision="auto",
    ),
    "cifar10-xs": TrainConfig(
        out=Path("runs/cifar10-xs"),
        data=DataConfig(source="uoft-cs/cifar10", image_column="img"),
        optimizer=OptimizerConfig(lr=8e-4, warmup_steps=300, ema_decay=0.999),
        steps=5_400,
        batch_size=64,
        mixed_precision="auto",
        checkpoint_every=500,
    ),
    "images": TrainConfig(
        out=Path("runs/images"),
        data=DataConfig(source="./images", size=64),
        model=ModelConfig(patch_size=4, width=384, depth=13, num_heads=6),
        steps=100_000,
        batch_size=128,
        mixed_precision="auto",
    ),
}

DESCRIPTIONS: dict[str, str] = {
    "digits": "scikit-learn's digits, 8x8 grey, 0.5M parameters: 25 minutes on one CPU core that has bfloat16.",
    "cifar10-xs": "CIFAR-10, 32x32, unconditional, 4.5M parameters: 90 minutes on one CPU core that has bfloat16.",
    "images": "Your own folder of images, 64x64, 26M parameters: for a GPU, or make it smaller.",
}

"""What the trainings of feature networks share: their settings, the images, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from adadiff.data import DataConfig, ImageData
from adadiff.data.config import DIGITS
from adadiff.evaluation.features import BATCH
from adadiff.evaluation.small_network import SmallNetwork
from adadiff.training.build import native_precision

CPU = torch.device("cpu")


@dataclass(frozen=True)
class SplitConfig(DataConfig):
    """One of several data sources of a command: its source has no short option."""

    source: str = DIGITS
    """Source of images: digits (built in), parquet file or folder of them, folder of images or of classes, hub name."""


@dataclass(frozen=True)
class NetworkTraining:
    """The settings of a training."""

    train: SplitConfig
    """Training images."""
    test: SplitConfig
    """Labelled test images."""
    out: Path
    """New folder for the network."""
    epochs: int = 15
    """Passes over the images."""
    batch_size: int = 256
    """Images per step."""
    lr: float = 0.4
    """Highest learning rate."""
    weight_decay: float = 5e-4
    """Weight decay."""
    seed: int = 0
    """Seed of weights, order and changes of the images."""


def fit(optimizer: Optimizer, images: int, loss_of: Callable[[Tensor], Tensor], config: NetworkTraining) -> None:
    """Train what an optimizer holds, with a one-cycle learning rate (Smith & Topin 2019, arXiv 1708.07120).

    Args:
        optimizer: Holds the weights to train.
        images: Number of training images.
        loss_of: Returns the loss of the images at these positions, (batch,) int64.
        config: The settings.
    """
    steps = config.epochs * (images // config.batch_size)
    schedule = OneCycleLR(optimizer, config.lr, total_steps=steps, pct_start=0.2)
    half = native_precision(CPU) == "bf16"
    with tqdm(total=steps, desc="training") as progress:
        for _ in range(config.epochs):
            for chosen in torch.randperm(images).split(config.batch_size):
                if len(chosen) < config.batch_size:
                    continue
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = loss_of(chosen)
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def saved(network: SmallNetwork, folder: Path) -> SmallNetwork:
    """Save a network in float16, and return what a later reader of the folder gets, in float32 for evaluation."""
    network.half().save_pretrained(folder)
    loaded: SmallNetwork = SmallNetwork.from_pretrained(folder, torch_dtype=torch.float32)
    return loaded.eval()


def load_pixels(data: ImageData) -> Tensor:
    """Load all images into memory, (n, channels, size, size) uint8."""
    pixels = [((data[k]["image"] + 1) * 127.5).round().byte() for k in tqdm(range(len(data)), desc="images")]
    return torch.stack(pixels)


def batches_of(pixels: Tensor) -> Iterator[Tensor]:
    """Yield images, (n, channels, size, size) uint8, in batches as feature networks take them, in [0, 1]."""
    yield from (few / 255 for few in pixels.split(BATCH))

"""Scales of the feature network `statistics`: python -m adadiff.evaluation.fit_statistics --help."""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.statistics_network import StatisticsNetwork
from adadiff.evaluation.train_network import batches_of, load_pixels
from adadiff.utils.files import require_empty_folder


def fit_statistics(train: DataConfig, out: Path, seed: int = 0) -> StatisticsNetwork:
    """Measure mean and standard deviation of all statistics of real images, and save the network with them.

    Args:
        train: Real images; no labels are read.
        out: New folder for the network.
        seed: Seed of the random convolutions.

    Raises:
        InputError: If the folder is not empty, or there are no images.
    """
    require_empty_folder(out)
    pixels = load_pixels(ImageData(train, condition="none"))
    network = StatisticsNetwork(seed).eval()
    raw = torch.cat([network(images) for images in batches_of(pixels)])
    network.mean.copy_(raw.mean(0))
    deviation = raw.std(0)
    network.deviation.copy_(deviation.where(deviation > 0, 1.0))  # constant for grey images: some colours
    network.save_pretrained(out)
    return network


if __name__ == "__main__":
    tyro.cli(fit_statistics)

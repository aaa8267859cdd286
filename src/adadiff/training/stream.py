"""The endless stream of training samples; sample k is the same on any number of processes and after any restart."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from adadiff.data import ImageData
from adadiff.seeding import generator_for


class TrainingStream(Dataset[dict[str, Any]]):
    """Images in a new order every epoch, each with its noise and its time.

    Item k follows from the seed and k alone. It is the image's item with `noise` (shaped like the image, standard
    normal) and `time` (uniform in [0, 1), float32) added.

    Args:
        images: What to go through.
        seed: Of the order, the flips, the noise and the times.
        flip: Whether to mirror every other image, at random.
    """

    def __init__(self, images: ImageData, seed: int, flip: bool) -> None:
        self.images, self.seed, self.flip = images, seed, flip

    def __getitem__(self, k: int) -> dict[str, Any]:
        epoch, place = divmod(k, len(self.images))
        item = self.images[int(_permutation(len(self.images), self.seed, epoch)[place])]
        generator = generator_for(self.seed, k)
        time, coin = torch.rand(2, generator=generator)
        if self.flip and coin < 0.5:
            item["image"] = item["image"].flip(2)
        return {**item, "noise": torch.randn(item["image"].shape, generator=generator), "time": time}


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)

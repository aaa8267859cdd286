"""The endless stream of training items; item k does not depend on the number of processes or on restarts."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from adadiff.conditioning import Condition, Unconditional
from adadiff.data import LabelledData
from adadiff.utils.seeding import generator_for


class TrainingStream(Dataset[dict[str, Any]]):
    """Yields the images in a new order every epoch, each with its noise and its time.

    Item k depends only on the seed and k. It holds `image` (or a newly drawn latent), `noise` (standard normal, shaped
    like the image), `time` (uniform in [0, 1), float32) and the entries that the condition adds.

    Args:
        images: The images or latents.
        seed: Seed of the order, flips, noise, times and dropped conditions.
        flip: Whether to mirror images at random, half of them on average.
        condition: What the model is conditioned on.
        condition_dropout: Probability of dropping an image's condition, in [0, 1].
    """

    def __init__(
        self,
        images: LabelledData,
        seed: int,
        flip: bool,
        condition: Condition | None = None,
        condition_dropout: float = 0.0,
    ) -> None:
        self.images, self.seed, self.flip = images, seed, flip
        self.condition, self.condition_dropout = condition or Unconditional(), condition_dropout

    def __getitem__(self, k: int) -> dict[str, Any]:
        epoch, place = divmod(k, len(self.images))
        item = self.images[int(_permutation(len(self.images), self.seed, epoch)[place])]
        generator = generator_for(self.seed, k)
        time, coin = torch.rand(2, generator=generator)
        noise = torch.randn(self.images.shape, generator=generator)
        dropped = torch.rand((), generator=generator) < self.condition_dropout
        if "image" in item:
            image = item["image"].flip(2) if self.flip and coin < 0.5 else item["image"]
        else:
            image = item["mean"] + item["std"] * torch.randn(self.images.shape, generator=generator)
        conditioning = self.condition.nothing() if dropped else self.condition.of(item)
        return {"image": image, "noise": noise, "time": time, **conditioning}


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)

"""`small`: a convolutional classifier whose pooled features judge images where no other network can be downloaded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from adadiff.verified import VerifiedModel


class SmallNetwork(VerifiedModel):
    """Seven 3x3 convolutions, each with batch normalisation and a ReLU, and a linear classifier on their average.

    The plan is that of a narrow ResNet-9: resolution halves where the width doubles, and a residual block follows at
    each of the two lowest resolutions.

    Args:
        class_names: The classes it tells apart.
        width: Channels of the first convolution; there are 8 times as many features.
        sample_size: Side of the images it was trained on; others are resized to it.
        mirror: Whether, once trained, an image's features are averaged with those of its mirror image.
    """

    @register_to_config
    def __init__(self, class_names: list[str], width: int = 24, sample_size: int = 32, mirror: bool = False) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(3, width),
            convolution(width, 2 * width, halve=True),
            convolution(2 * width, 4 * width, halve=True),
            Residual(4 * width),
            convolution(4 * width, 8 * width, halve=True),
            Residual(8 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(8 * width, len(class_names))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits, (batch, 8 * width) and (batch, classes), of images (batch, 1 or 3, any, any) in [0, 1].

        Grey images count as RGB with three channels alike.
        """
        size = (self.config.sample_size,) * 2
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        images = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        features = self.features(2 * images - 1)
        if self.config.mirror and not self.training:
            features = (features + self.features(2 * images.flip(3) - 1)) / 2
        return features, self.classifier(features)


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def convolution(inputs: int, outputs: int, halve: bool = False) -> nn.Sequential:
    """A 3x3 convolution, halved in resolution where asked, normalised, through a ReLU."""
    pool = nn.MaxPool2d(2) if halve else nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), pool, nn.BatchNorm2d(outputs), nn.ReLU())

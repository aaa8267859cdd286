"""The network of the packaged features `small` and `unlabelled`: convolutions and perhaps a classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from adadiff.utils.verified import VerifiedModel


class SmallNetwork(VerifiedModel):
    """A small convolutional network, a narrow ResNet-9, whose pooled features serve as image features.

    Eight 3x3 convolutions, each with batch normalisation and a ReLU, and a linear classifier on their average if there
    are classes. The resolution halves where the width doubles; a residual block follows at each of the two lowest
    resolutions.

    Args:
        class_names: Names of the classes that it distinguishes; none for a network of features alone.
        width: Channels of the first convolution; there are 8 times as many features.
        sample_size: Side of the training images, in pixels; other sizes are resized to it.
        mirror: Whether, in evaluation mode, an image's features are averaged with those of its mirror image.
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
        self.classifier = nn.Linear(8 * width, len(class_names)) if class_names else None

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute features and logits of images.

        Args:
            images: (batch, channels, height, width) in [0, 1], with 3 channels, or 1 for grey, which is repeated.

        Returns:
            Features, (batch, 8 * width), and if there are classes, logits, (batch, classes).
        """
        size = (self.config.sample_size,) * 2
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        images = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        features = self.features(2 * images - 1)
        if self.config.mirror and not self.training:
            features = (features + self.features(2 * images.flip(3) - 1)) / 2
        return features if self.classifier is None else (features, self.classifier(features))


class Residual(nn.Module):
    """A residual block: the identity plus two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


def convolution(inputs: int, outputs: int, halve: bool = False) -> nn.Sequential:
    """Build a 3x3 convolution with batch normalisation and a ReLU, optionally halving the resolution."""
    pool = nn.MaxPool2d(2) if halve else nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), pool, nn.BatchNorm2d(outputs), nn.ReLU())

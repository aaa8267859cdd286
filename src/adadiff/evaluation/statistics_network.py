"""The feature network `statistics`: colours, power spectrum and random convolutions, without training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from adadiff.evaluation.colours import RGB_TO_YIQ, saturation
from adadiff.utils.verified import VerifiedModel

BINS = 8  # of each histogram
RINGS = 12  # of each power spectrum
WIDTHS = (32, 48)  # channels of the random convolutions
SIZE = 32
POWER_FLOOR = 1e-6  # of rounding to 8 bits: (1 / 255)^2 / 12


class StatisticsNetwork(VerifiedModel):
    """Maps images to 128 statistics that need no training, each divided by its standard deviation on real images.

    - 12 moments: mean, standard deviation and cube root of the third central moment of red, green and blue, and their
      three covariances;
    - 32 shares: histograms of red, green, blue and saturation, each pixel split linearly between two of 8 bins;
    - 36 logarithms of power: brightness and two colour differences, on 12 rings of equal width in frequency;
    - 48 responses: means of the second of two random convolutions with ReLUs.

    Args:
        seed: Seed of the random convolutions.
    """

    mean: Tensor
    deviation: Tensor

    @register_to_config
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        first, second = WIDTHS
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, bias=False), nn.ReLU(), nn.Conv2d(first, second, 3, stride=2, bias=False)
        )
        generator = torch.Generator().manual_seed(seed)
        for weight in self.convolutions.parameters():
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        count = 12 + 4 * BINS + 3 * RINGS + second
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Compute the standardized statistics of images.

        Args:
            images: (batch, channels, height, width) in [0, 1], with 3 channels, or 1 for grey, which is repeated.

        Returns:
            Statistics, (batch, 128).
        """
        return (self.raw(images) - self.mean) / self.deviation

    def raw(self, images: Tensor) -> Tensor:
        """Compute the statistics before standardization, (batch, 128)."""
        if images.shape[2:] != (SIZE, SIZE):
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
        images = images.expand(-1, 3, -1, -1)
        levels = torch.cat([images, saturation(images)[:, None]], 1)  # (batch, 4, height, width)
        responses = self.convolutions(2 * images - 1).relu().mean((2, 3))
        return torch.cat([moments(images), histograms(levels), power_spectra(images), responses], 1)


def moments(images: Tensor) -> Tensor:
    """Compute mean, standard deviation, root of the third moment and covariances of the channels, (batch, 12).

    Args:
        images: (batch, 3, height, width).
    """
    pixels = images.flatten(2)  # (batch, 3, pixels)
    centred = pixels - pixels.mean(2, keepdim=True)
    third = centred.pow(3).mean(2)
    covariance = centred @ centred.mT / pixels.shape[2]  # (batch, 3, 3)
    rows, columns = torch.triu_indices(3, 3, 1)
    return torch.cat(
        [
            pixels.mean(2),
            centred.square().mean(2).sqrt(),
            third.sign() * third.abs().pow(1 / 3),
            covariance[:, rows, columns],
        ],
        1,
    )


def histograms(levels: Tensor) -> Tensor:
    """Compute the histogram of each channel; a value between two centres counts for both, by nearness.

    Args:
        levels: (batch, channels, height, width) in [0, 1].

    Returns:
        Shares, (batch, channels * BINS); those of a channel add up to 1. The centres lie evenly from 0 to 1.
    """
    position = levels.flatten(2) * (BINS - 1)  # (batch, channels, pixels)
    shares = [(1 - (position - k).abs()).clamp(min=0).mean(2) for k in range(BINS)]
    return torch.stack(shares, 2).flatten(1)


def power_spectra(images: Tensor) -> Tensor:
    """Compute the logarithm of the mean power on rings of frequency, of Y, I and Q of the YIQ colours.

    Args:
        images: Square RGB images, (batch, 3, size, size).

    Returns:
        Natural logarithms, (batch, 3 * RINGS). Ring k holds the frequencies from k to k + 1 parts in RINGS of the
        highest, half a cycle a pixel; the constant is left out, and the corners beyond belong to the last ring.
    """
    size = images.shape[3]
    opponent = torch.einsum("ij,bjhw->bihw", RGB_TO_YIQ.to(images), images)
    power = torch.fft.fft2(opponent, norm="ortho").abs().square().flatten(2)  # (batch, 3, size * size)
    frequency = torch.fft.fftfreq(size, device=images.device)
    radius = torch.hypot(frequency[:, None], frequency[None, :]).flatten()
    ring = (2 * RINGS * radius).long().clamp(max=RINGS - 1)
    member = F.one_hot(ring, RINGS).to(power) * (radius > 0)[:, None]  # (size * size, rings)
    return (power @ (member / member.sum(0)) + POWER_FLOOR).log().flatten(1)

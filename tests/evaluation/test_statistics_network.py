"""The statistics against numpy, on simple images."""

import numpy as np
import pytest
import torch

from adadiff.evaluation.colours import RGB_TO_YIQ
from adadiff.evaluation.features import load_feature_network
from adadiff.evaluation.statistics_network import (
    BINS,
    POWER_FLOOR,
    RINGS,
    StatisticsNetwork,
    histograms,
    moments,
    power_spectra,
)


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_moments_are_those_of_numpy(images):
    for found, image in zip(moments(images).numpy(), images.numpy(), strict=True):
        pixels = image.reshape(3, -1).astype(np.float64)
        third = ((pixels - pixels.mean(1, keepdims=True)) ** 3).mean(1)
        covariance = np.cov(pixels, bias=True)
        wanted = [*pixels.mean(1), *pixels.std(1), *np.cbrt(third), *covariance[np.triu_indices(3, 1)]]
        assert found == pytest.approx(wanted, abs=1e-4)


def test_histograms_count_pixels_and_split_those_between_two_centres():
    levels = torch.tensor([[[[0.0, 1.0], [1.5 / 7, 1.5 / 7]]]])
    assert histograms(levels)[0].tolist() == pytest.approx([0.25, 0.25, 0.25, 0, 0, 0, 0, 0.25])
    many = torch.rand(2, 4, 16, 16)
    assert histograms(many).view(2, 4, BINS).sum(2).numpy() == pytest.approx(np.ones((2, 4)), abs=1e-5)


def test_power_of_a_wave_lies_on_its_ring():
    """A wave of 10 periods in 32 pixels: 10/16 of the highest frequency, so on ring 7 of 12."""
    wave = 0.5 + 0.3 * torch.cos(2 * torch.pi * 10 * torch.arange(32) / 32)
    found = power_spectra(wave.expand(1, 3, 32, 32))[0].view(3, RINGS)
    assert found[0].argmax() == 7
    others = [ring for ring in range(RINGS) if ring != 7]
    assert found[0, others].numpy() == pytest.approx(np.full(RINGS - 1, np.log(POWER_FLOOR)), abs=0.05)
    assert (found[1:] < np.log(1e-3)).all()  # grey has no colour


def test_power_spectra_are_those_of_numpy(images):
    found = power_spectra(images)[0].view(3, RINGS)
    opponent = np.einsum("ij,jhw->ihw", RGB_TO_YIQ.numpy(), images[0].numpy())
    power = np.abs(np.fft.fft2(opponent)) ** 2 / 32**2
    radius = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None])
    for ring in range(RINGS):
        low, high = ring / (2 * RINGS), (ring + 1) / (2 * RINGS) if ring < RINGS - 1 else np.inf
        inside = (radius >= low) & (radius < high) & (radius > 0)
        wanted = np.log(power[:, inside].mean(1) + POWER_FLOOR)
        assert found[:, ring].numpy() == pytest.approx(wanted, abs=1e-3)


def test_the_network_is_the_same_each_time_and_takes_any_size_and_grey(images):
    first, second = StatisticsNetwork(), StatisticsNetwork()
    assert torch.equal(first(images), second(images))
    assert not torch.equal(first(images), StatisticsNetwork(seed=1)(images))
    assert first(torch.rand(2, 1, 8, 8)).shape == (2, 128)
    assert torch.isfinite(first(torch.zeros(1, 3, 32, 32))).all()


def test_the_packaged_network_standardizes(images):
    network = load_feature_network("statistics").network
    assert torch.allclose(network(images), (network.raw(images) - network.mean) / network.deviation)
    assert network.deviation.min() > 0
    assert torch.equal(network.convolutions[0].weight, StatisticsNetwork().convolutions[0].weight)

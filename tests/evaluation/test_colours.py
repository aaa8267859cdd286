"""Saturation and brightness."""

import colorsys

import pytest
import torch

from adadiff.evaluation.colours import RGB_TO_YIQ, saturation


def test_saturation_is_that_of_colorsys():
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images[0, :, 0, 0] = 0
    images[0, :, 0, 1] = 1
    found = saturation(images)
    for n, row, column in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(4)).tolist():
        wanted = colorsys.rgb_to_hsv(*images[n, :, row, column].tolist())[1]
        assert found[n, row, column].item() == pytest.approx(wanted, abs=1e-6)
    assert saturation(images[:, :1]).eq(0).all()


def test_the_matrix_is_that_of_colorsys():
    """The standard library rounds the same matrix to two digits."""
    colour = [0.2, 0.7, 0.4]
    assert (RGB_TO_YIQ @ torch.tensor(colour)).tolist() == pytest.approx(colorsys.rgb_to_yiq(*colour), abs=0.01)

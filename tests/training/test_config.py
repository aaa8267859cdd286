"""The forward processes against their closed forms."""

import math

import pytest
import torch

from adadiff.backbones import InputSpec, UViT, UViTConfig
from adadiff.training.config import DiffusionConfig


def test_the_vp_sde_stands_where_its_closed_form_does():
    """abar(t) = exp(-0.1 t - 9.95 t^2), after step i at t = i / 1000."""
    scheduler = DiffusionConfig(beta_schedule="vp_sde").build()
    for step in (0, 1, 99, 499, 999):
        t = (step + 1) / 1000
        assert scheduler.alphas_cumprod[step].item() == pytest.approx(math.exp(-0.1 * t - 9.95 * t**2), rel=1e-3)
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(4.318e-5, rel=1e-3)


def test_on_the_vp_sde_the_network_sees_999_t():
    config = UViTConfig(width=12, depth=1, num_heads=3)
    seen = DiffusionConfig(beta_schedule="vp_sde").network_time()
    backbone = UViT(config, InputSpec((8, 8), 1, **seen))
    steps = torch.tensor([0.0, 499.0, 999.0])
    plain = UViT(config, InputSpec((8, 8), 1))
    plain.load_state_dict(backbone.state_dict())
    sample = torch.randn(3, 1, 8, 8)
    times = 999 * (steps + 1) / 1000
    torch.testing.assert_close(backbone.embed(sample, steps).time, plain.embed(sample, times).time)


def test_stable_diffusions_betas():
    """Square roots linear from 0.00085 to 0.0120."""
    scheduler = DiffusionConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.0120).build()
    roots = scheduler.betas.sqrt().double()
    first, last = math.sqrt(0.00085), math.sqrt(0.0120)
    for step in (0, 250, 999):
        assert roots[step].item() == pytest.approx(first + (last - first) * step / 999, rel=1e-5)

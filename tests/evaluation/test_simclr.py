"""Random views and the contrastive loss."""

import colorsys
import math

import pytest
import torch

from adadiff.evaluation import simclr
from adadiff.evaluation.simclr import change_colours, contrastive_loss, crop, random_views


def test_the_loss_is_that_of_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 7, generator=generator)
    views, losses = [*first, *second], []
    for i, view in enumerate(views):
        partner = (i + 5) % 10
        scores = [math.exp(torch.cosine_similarity(view, other, 0).item() / 0.3) for other in views]
        losses.append(-math.log(scores[partner] / (sum(scores) - scores[i])))
    assert contrastive_loss(first, second, 0.3).item() == pytest.approx(sum(losses) / 10, rel=1e-5)


def test_views_have_their_size_and_range_and_follow_the_seed():
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(random_views(images, 12, flip=True))
    assert drawn[0].shape == (64, 3, 12, 12)
    assert 0 <= drawn[0].min() < drawn[0].max() <= 1
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("flip", [False, True])
def test_crops_lie_within_the_image_and_keep_their_side(flip):
    """The image's values are its coordinates, so that a crop shows where it lies."""
    torch.manual_seed(0)
    row = ((torch.arange(32) + 0.5) / 32).expand(32, 32)
    views = crop(torch.stack([row, row.T, row]).expand(200, 3, 32, 32), 8, flip)
    widths, heights = views[:, 0, 4].diff(dim=1).mean(1) * 8, views[:, 1, :, 4].diff(dim=1).mean(1) * 8
    assert (heights > 0).all()
    assert ((widths < 0).float().mean().item() == 0) != flip
    area, ratio = widths.abs() * heights, widths.abs() / heights
    assert 0.15 < area.min() < 0.3
    assert 0.8 < area.max() < 1.02
    assert 0.7 < ratio.min() < 0.85
    assert 1.15 < ratio.max() < 1.4


def test_colours_change_as_hsv_says(monkeypatch):
    """With one change at a time: grey loses all colour, contrast keeps the mean, a turn keeps brightness."""
    torch.manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(32, 3, 8, 8)
    monkeypatch.setattr(simclr, "JITTERED", 0.0)
    monkeypatch.setattr(simclr, "GREY", 1.0)
    grey = change_colours(images)
    luma = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    assert torch.allclose(grey, luma[:, None].expand(-1, 3, -1, -1), atol=1e-3)
    monkeypatch.setattr(simclr, "GREY", 0.0)
    assert torch.allclose(change_colours(images), images, atol=1e-5)
    monkeypatch.setattr(simclr, "JITTERED", 1.0)
    monkeypatch.setattr(simclr, "STRENGTH", 0.0)
    turned = change_colours(images)
    assert torch.allclose(turned.mT.mul(torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1).mT, luma, atol=1e-3)
    before, after = (colorsys.rgb_to_hsv(*each.mean((1, 2)).tolist())[0] for each in (images[0], turned[0]))
    assert before != pytest.approx(after, abs=1e-3)
    monkeypatch.setattr(simclr, "TURN", 0.0)
    monkeypatch.setattr(simclr, "STRENGTH", 0.4)
    changed = change_colours(images)
    assert not torch.allclose(changed, images, atol=0.05)

"""SimCLR (Chen et al. 2020, arXiv 2002.05709): random views of images and the contrastive loss between them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from adadiff.evaluation.colours import RGB_TO_YIQ

AREA = (0.2, 1.0)  # of the image, that a crop covers
RATIO = (3 / 4, 4 / 3)  # width over height of a crop
STRENGTH = 0.4  # of brightness, contrast and saturation: factors in [1 - STRENGTH, 1 + STRENGTH]
TURN = 0.1  # largest shift of the hue, as a fraction of the circle
JITTERED, GREY = 0.8, 0.2  # shares of views with changed colours, and without colours


def contrastive_loss(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Compute NT-Xent: the cross-entropy of recognising each view's partner among all other views of the batch.

    Args:
        first: Projections of the first views, (batch, features).
        second: Projections of the second views of the same images, (batch, features).
        temperature: Divides the cosine similarities, above 0.
    """
    views = F.normalize(torch.cat([first, second]).float(), dim=1)  # (2 * batch, features)
    similarity = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    partner = torch.arange(len(views)).roll(len(first))
    return F.cross_entropy(similarity, partner)


def random_views(images: Tensor, size: int, flip: bool) -> Tensor:
    """Draw a random view of each image: a resized crop, flipped at random, with changed colours or none.

    Args:
        images: (batch, 3, height, width) in [0, 1].
        size: Side of the views, in pixels.
        flip: Whether half of the views are flipped.

    Returns:
        Views, (batch, 3, size, size) in [0, 1].
    """
    return change_colours(crop(images, size, flip))


def crop(images: Tensor, size: int, flip: bool) -> Tensor:
    """Cut a random rectangle out of each image, resize it to a square, and flip half of them at random."""
    n = len(images)
    area = _uniform(n, *AREA)
    ratio = _uniform(n, math.log(RATIO[0]), math.log(RATIO[1])).exp()
    sides = torch.stack([area * ratio, area / ratio], 1).sqrt().clamp(max=1)  # (batch, 2): width, height
    centres = (1 - sides) * _uniform(2 * n, -1, 1).view(n, 2)
    affine = torch.cat([torch.diag_embed(sides), centres[:, :, None]], 2)  # (batch, 2, 3)
    affine[torch.rand(n) < (0.5 if flip else 0.0), 0, 0] *= -1
    grid = F.affine_grid(affine, [n, images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def change_colours(images: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of most images, and take all colour from some.

    All changes but the last clamp to [0, 1] are linear, so each image takes one 3x3 matrix and one offset.
    """
    n, pixels = len(images), images.flatten(2)  # (batch, 3, pixels)
    jittered = torch.rand(n) < JITTERED
    factors = torch.where(jittered, _uniform(3 * n, 1 - STRENGTH, 1 + STRENGTH).view(3, n), 1.0)
    brightness, contrast, saturation = factors
    saturation = torch.where(torch.rand(n) < GREY, 0.0, saturation)
    angle = torch.where(jittered, 2 * math.pi * _uniform(n, -TURN, TURN), 0.0)
    change = torch.zeros(n, 3, 3)  # in YIQ: lightness, and the plane of colours, turned and stretched
    change[:, 0, 0] = 1
    change[:, 1, 1] = change[:, 2, 2] = saturation * angle.cos()
    change[:, 2, 1] = saturation * angle.sin()
    change[:, 1, 2] = -change[:, 2, 1]
    matrix = RGB_TO_YIQ.inverse() @ change @ RGB_TO_YIQ * brightness[:, None, None]
    grey = (RGB_TO_YIQ[0] @ (matrix @ pixels.mean(2, keepdim=True)))[:, :, None]  # (batch, 1, 1): mean lightness
    contrast = contrast[:, None, None]
    changed = contrast * (matrix @ pixels) + (1 - contrast) * grey
    return changed.clamp(0, 1).view_as(images)


def _uniform(n: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(n)

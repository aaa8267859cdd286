"""Exit heads against a slow closed form: least squares over all tokens, with the ridge as rows of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from adadiff.stock.adapting.estimators import SMALLEST, EstimatorFit
from adadiff.stock.adapting.heads import HeadFit, RidgeSums


def closed_form(tokens: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """Solve the ridge regression by least squares, the weights' rows of the ridge below: (out, width + 1)."""
    x, y = tokens.double().numpy(), wanted.double().numpy()
    width = x.shape[1]
    spread = np.square(x - x.mean(0)).sum(1).mean()
    pull = np.concatenate([np.sqrt(ridge * spread) * np.eye(width), np.zeros((width, 1))], axis=1)
    rows = np.concatenate([np.concatenate([x, np.ones((len(x), 1))], axis=1), pull])
    solution = np.linalg.lstsq(rows, np.concatenate([y, np.zeros((width, y.shape[1]))]), rcond=None)[0]
    return torch.from_numpy(solution.T).float()


def seen(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What an exit reads, predicts, and is to predict: (count, 5, 4) tokens, (count, 5, 3) predictions."""
    draws = torch.Generator().manual_seed(seed)
    tokens, early, full = (torch.randn(count, 5, width, generator=draws) for width in (4, 3, 3))
    return tokens + 2, early, full


def test_heads_are_the_closed_form_of_all_calls_together():
    fit, calls = HeadFit(2, 3), [seen(count, count) for count in (1, 4, 7)]
    for call in calls:
        fit.see(1, 2, *call)
    tokens, early, full = (torch.cat(parts).flatten(0, 1) for parts in zip(*calls, strict=True))
    heads = fit.solve()  # (exits, bins, out, width + 1)
    assert heads.shape == (2, 3, 3, 5)
    torch.testing.assert_close(heads[1, 2], closed_form(tokens, full - early, 0.03))
    assert not heads[0].any()  # nothing was seen there
    assert not heads[1, :2].any()


@pytest.mark.parametrize("ridge", [1e-4, 0.1, 1e9])
def test_the_ridge_leaves_the_bias_free(ridge: float):
    tokens, _, wanted = (part.flatten(0, 1) for part in seen(6, 0))
    sums = RidgeSums(1, 1)
    sums.add(0, 0, tokens, wanted)
    torch.testing.assert_close(sums.solve(ridge)[0, 0], closed_form(tokens, wanted, ridge), atol=1e-5, rtol=1e-4)
    if ridge == 1e9:
        torch.testing.assert_close(sums.solve(ridge)[0, 0, :, -1], wanted.mean(0), atol=1e-5, rtol=1e-4)


def test_equal_tokens_can_be_solved_for():
    sums = RidgeSums(1, 1)
    sums.add(0, 0, torch.ones(3, 2), torch.tensor([[1.0], [2.0], [3.0]]))
    assert torch.tensor([1.0, 1.0, 1.0]) @ sums.solve(0.1)[0, 0, 0] == pytest.approx(2)


def test_estimators_fit_the_logarithm_of_the_relative_error():
    tokens, early, full = seen(9, 1)
    heads = torch.zeros(1, 1, 3, 5)
    heads[0, 0, :, -1] = 0.5  # adds one half to every prediction
    fit = EstimatorFit(heads)
    for start in (0, 4):
        fit.see(0, 0, *(part[start : start + 4 if start == 0 else None] for part in (tokens, early, full)))
    error = (full - early - 0.5).square().sum((1, 2))
    relative = (error / full.square().sum((1, 2))).sqrt().log()[:, None]
    torch.testing.assert_close(fit.solve()[0], closed_form(tokens.mean(1), relative, 0.1))
    plain = (full - early).square().mean() / full.square().mean()
    torch.testing.assert_close(
        fit.errors()[0, 0], torch.stack([plain, error.mean() / full.square().sum((1, 2)).mean()])
    )


def test_an_exit_without_error_has_a_finite_estimate():
    tokens, early, _ = seen(3, 2)
    fit = EstimatorFit(torch.zeros(1, 1, 3, 5))
    fit.see(0, 0, tokens, early, early)
    assert fit.solve()[0, 0, -1].exp().item() == pytest.approx(SMALLEST, rel=1e-3)

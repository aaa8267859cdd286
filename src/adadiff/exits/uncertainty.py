"""Uncertainty estimators u_i: how far the prediction read off layer i still is from the truth (AdaDiff, section 3.2).

Each maps a layer's patch tokens, (batch, patches, width), and the time embedding, (batch, width), to uncertainties in
[0, 1], (batch, patches, patch values): one for each number of the prediction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adadiff.backbones import Backbone


class ConcatEstimator(nn.Module):
    """u = sigmoid(w . [tokens, time] + b), as in the paper.

    The product with the concatenation is the sum of two products, and the time's is the same for all patches.
    """

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.tokens = nn.Linear(backbone.width, backbone.patch_values, bias=False)
        self.time = nn.Linear(backbone.width, backbone.patch_values)

    def forward(self, patch_tokens: Tensor, time: Tensor) -> Tensor:
        return torch.sigmoid(self.tokens(patch_tokens) + self.time(time)[:, None])


class TokenEstimator(nn.Module):
    """u = sigmoid(w . tokens + b): the authors' released code, where the time reaches the tokens by attention alone."""

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.tokens = nn.Linear(backbone.width, backbone.patch_values)

    def forward(self, patch_tokens: Tensor, time: Tensor) -> Tensor:
        return torch.sigmoid(self.tokens(patch_tokens))


class AttentionEstimator(nn.Module):
    """A learned query attends to the tokens; an MLP of what it gathers gives one uncertainty for the whole sample.

    After the attention probe of DuoDiff's reproduction (arXiv 2410.09633). With a query that depends on nothing, the
    key projection can be taken into the query and the value projection into the MLP, so both are left out: the same
    family of functions at a fraction of the cost.
    """

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.values = backbone.patch_values
        self.query = nn.Linear(backbone.width, 1, bias=False)
        self.mlp = nn.Sequential(nn.Linear(backbone.width, backbone.width), nn.SiLU(), nn.Linear(backbone.width, 1))

    def forward(self, patch_tokens: Tensor, time: Tensor) -> Tensor:
        attention = self.query(patch_tokens).div(patch_tokens.shape[2] ** 0.5).softmax(dim=1)
        gathered = (attention * patch_tokens).sum(dim=1, keepdim=True)
        return torch.sigmoid(self.mlp(gathered)).expand(-1, patch_tokens.shape[1], self.values)


ESTIMATORS: dict[str, type[ConcatEstimator] | type[TokenEstimator] | type[AttentionEstimator]] = {
    "concat": ConcatEstimator,
    "token": TokenEstimator,
    "attention": AttentionEstimator,
}

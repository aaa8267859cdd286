"""Uncertainty estimators u_i: how far the prediction read off layer i still is from the truth (AdaDiff, section 3.2).

Each maps a layer's patch tokens, (batch, patches, width), the time embedding, (batch, width), and the patch tokens of
the layer before to uncertainties in [0, 1], (batch, patches, patch values): one for each number of the prediction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adadiff.backbones import Backbone


class Estimator(nn.Module, ABC):
    """What all estimators have in common.

    Attributes:
        shared: Whether one serves all layers; else every layer has its own.
    """

    shared: ClassVar[bool] = False

    @abstractmethod
    def forward(self, patch_tokens: Tensor, time: Tensor, previous_tokens: Tensor) -> Tensor:
        """The uncertainties."""


class ConcatEstimator(Estimator):
    """u = sigmoid(w . [tokens, time] + b), as in the paper.

    The product with the concatenation is the sum of two products, and the time's is the same for all patches.
    """

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.tokens = nn.Linear(backbone.width, backbone.patch_values, bias=False)
        self.time = nn.Linear(backbone.width, backbone.patch_values)

    def forward(self, patch_tokens: Tensor, time: Tensor, previous_tokens: Tensor) -> Tensor:
        return torch.sigmoid(self.tokens(patch_tokens) + self.time(time)[:, None])


class TokenEstimator(Estimator):
    """u = sigmoid(w . tokens + b): the authors' released code, where the time reaches the tokens by attention alone."""

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.tokens = nn.Linear(backbone.width, backbone.patch_values)

    def forward(self, patch_tokens: Tensor, time: Tensor, previous_tokens: Tensor) -> Tensor:
        return torch.sigmoid(self.tokens(patch_tokens))


class AttentionEstimator(Estimator):
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

    def forward(self, patch_tokens: Tensor, time: Tensor, previous_tokens: Tensor) -> Tensor:
        attention = self.query(patch_tokens).div(patch_tokens.shape[2] ** 0.5).softmax(dim=1)
        gathered = (attention * patch_tokens).sum(dim=1, keepdim=True)
        return torch.sigmoid(self.mlp(gathered)).expand(-1, patch_tokens.shape[1], self.values)


class SharedTokenEstimator(TokenEstimator):
    """BERxiT's learning-to-exit module: one linear map for all layers (Xin et al., EACL 2021).

    There it reads the classification token of a sentence; here every patch, so that it can be compared with the others.
    """

    shared = True


class SaturationEstimator(Estimator):
    """1 - cos(tokens, tokens of the layer before), the mean over patches: nothing is learned.

    CALM (Schuster et al., NeurIPS 2022, arXiv 2207.07061) leaves where the cosine is above a threshold, that is where
    this is below one minus it.
    """

    shared = True

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.values = backbone.patch_values

    def forward(self, patch_tokens: Tensor, time: Tensor, previous_tokens: Tensor) -> Tensor:
        cosine = torch.cosine_similarity(patch_tokens.float(), previous_tokens.float(), dim=2).mean(1)
        return (1 - cosine).clamp(0, 1)[:, None, None].expand(-1, patch_tokens.shape[1], self.values)


ESTIMATORS: dict[str, type[Estimator]] = {
    "concat": ConcatEstimator,
    "token": TokenEstimator,
    "attention": AttentionEstimator,
    "shared_token": SharedTokenEstimator,
    "saturation": SaturationEstimator,
}


def build_estimators(kind: type[Estimator], backbone: Backbone[Any]) -> nn.ModuleList:
    """One for each layer, or one for all."""
    return nn.ModuleList(kind(backbone) for _ in range(1 if kind.shared else backbone.depth))

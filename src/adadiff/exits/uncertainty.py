"""Uncertainty estimators u_i: they estimate the error of the prediction after layer i (AdaDiff, section 3.2).

An estimator maps a layer's patch tokens, (batch, patches, width), the time embedding, (batch, width), and the previous
layer's patch tokens to uncertainties in [0, 1], (batch, patches, patch values): one per value of the prediction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adadiff.backbones import Backbone


class Estimator(nn.Module, ABC):
    """Base class of the uncertainty estimators.

    Attributes:
        shared: Whether one estimator serves all layers; otherwise each layer has its own.
    """

    shared: ClassVar[bool] = False

    @abstractmethod
    def forward(self, patch_tokens: Tensor, time: Tensor, previous_tokens: Tensor) -> Tensor:
        """Estimate the uncertainties of one layer's prediction.

        Args:
            patch_tokens: Patch tokens after the layer, (batch, patches, width).
            time: Embedding of each sample's time step, (batch, width).
            previous_tokens: Patch tokens before the layer, (batch, patches, width).

        Returns:
            (batch, patches, patch values) in [0, 1].
        """


class ConcatEstimator(Estimator):
    """Estimates u = sigmoid(w . [tokens, time] + b), the paper's equation.

    The product with the concatenation is computed as a sum of two products, because the time's part is the same for
    all patches.
    """

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.tokens = nn.Linear(backbone.width, backbone.patch_values, bias=False)
        self.time = nn.Linear(backbone.width, backbone.patch_values)

    def forward(self, patch_tokens: Tensor, time: Tensor, previous_tokens: Tensor) -> Tensor:
        return torch.sigmoid(self.tokens(patch_tokens) + self.time(time)[:, None])


class TokenEstimator(Estimator):
    """Estimates u = sigmoid(w . tokens + b), as the authors' released code; time enters only through attention."""

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.tokens = nn.Linear(backbone.width, backbone.patch_values)

    def forward(self, patch_tokens: Tensor, time: Tensor, previous_tokens: Tensor) -> Tensor:
        return torch.sigmoid(self.tokens(patch_tokens))


class AttentionEstimator(Estimator):
    """Estimates one uncertainty per sample: a learned query attends to the tokens, and an MLP maps the result to it.

    After the attention probe of DuoDiff's reproduction (arXiv 2410.09633). The query does not depend on the input, so
    the key projection can be merged into the query and the value projection into the MLP. Both are left out: the
    family of functions is the same, the cost a fraction.
    """

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.values = backbone.patch_values
        self.query = nn.Linear(backbone.width, 1, bias=False)
        self.mlp = nn.Sequential(nn.Linear(backbone.width, backbone.width), nn.SiLU(), nn.Linear(backbone.width, 1))

    def forward(self, patch_tokens: Tensor, time: Tensor, previous_tokens: Tensor) -> Tensor:
        attention = self.query(patch_tokens).div(patch_tokens.shape[2] ** 0.5).softmax(dim=1)  # (batch, patches, 1)
        gathered = (attention * patch_tokens).sum(dim=1, keepdim=True)  # (batch, 1, width)
        return torch.sigmoid(self.mlp(gathered)).expand(-1, patch_tokens.shape[1], self.values)


class SharedTokenEstimator(TokenEstimator):
    """Shares one linear map among all layers: BERxiT's learning-to-exit module (Xin et al., EACL 2021).

    BERxiT reads a sentence's classification token. This one reads every patch, to be comparable with the other
    estimators.
    """

    shared = True


class SaturationEstimator(Estimator):
    """Measures 1 - cos(tokens, previous layer's tokens), averaged over patches, without learned parameters.

    CALM (Schuster et al., NeurIPS 2022, arXiv 2207.07061) exits if the cosine is above a threshold, that is if this
    value is below one minus that threshold.
    """

    shared = True

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.values = backbone.patch_values

    def forward(self, patch_tokens: Tensor, time: Tensor, previous_tokens: Tensor) -> Tensor:
        cosine = torch.cosine_similarity(patch_tokens.float(), previous_tokens.float(), dim=2).mean(1)  # (batch,)
        return (1 - cosine).clamp(0, 1)[:, None, None].expand(-1, patch_tokens.shape[1], self.values)


ESTIMATORS: dict[str, type[Estimator]] = {
    "concat": ConcatEstimator,
    "token": TokenEstimator,
    "attention": AttentionEstimator,
    "shared_token": SharedTokenEstimator,
    "saturation": SaturationEstimator,
}


def build_estimators(kind: type[Estimator], backbone: Backbone[Any]) -> nn.ModuleList:
    """Build one estimator for each layer, or a single one if the kind is shared."""
    return nn.ModuleList(kind(backbone) for _ in range(1 if kind.shared else backbone.depth))

"""Output heads g_i: they map the tokens after layer i to a prediction."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from adadiff.backbones import Backbone


class SharedHead(nn.Module):
    """Uses the backbone's own output head after every layer (the authors' released code)."""

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()

    def forward(self, i: int, patch_tokens: Tensor, final_head: nn.Module) -> Tensor:
        """Map layer i's patch tokens to its prediction.

        Args:
            i: Layer, 1..N.
            patch_tokens: (batch, patches, width).
            final_head: The backbone's head, g_N.

        Returns:
            Prediction, (batch, channels, height, width).
        """
        return final_head(patch_tokens)


class PerLayerHeads(nn.Module):
    """Uses a separate head after each layer, initialised as a copy of the backbone's head, which serves layer N."""

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(copy.deepcopy(backbone.head) for _ in range(backbone.depth - 1))

    def forward(self, i: int, patch_tokens: Tensor, final_head: nn.Module) -> Tensor:
        """Map layer i's patch tokens, (batch, patches, width), to a prediction, (batch, channels, height, width)."""
        return final_head(patch_tokens) if i > len(self.heads) else self.heads[i - 1](patch_tokens)


HEADS: dict[str, type[SharedHead] | type[PerLayerHeads]] = {"shared": SharedHead, "per_layer": PerLayerHeads}

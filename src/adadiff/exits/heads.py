"""Output heads g_i: how the prediction is read off the tokens after layer i."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from adadiff.backbones import Backbone


class SharedHead(nn.Module):
    """One head for all layers, the backbone's own (the authors' released code)."""

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()

    def forward(self, i: int, patch_tokens: Tensor, final_head: nn.Module) -> Tensor:
        """Read layer i's prediction off its patch tokens.

        Args:
            i: Layer, 1..N.
            patch_tokens: (batch, patches, width).
            final_head: The backbone's head, g_N.

        Returns:
            Prediction, (batch, channels, height, width).
        """
        return final_head(patch_tokens)


class PerLayerHeads(nn.Module):
    """A head of its own for every layer, each starting as a copy of the backbone's, which stays layer N's."""

    def __init__(self, backbone: Backbone[Any]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(copy.deepcopy(backbone.head) for _ in range(backbone.depth - 1))

    def forward(self, i: int, patch_tokens: Tensor, final_head: nn.Module) -> Tensor:
        """As `SharedHead.forward`, with layer i's own head."""
        return final_head(patch_tokens) if i > len(self.heads) else self.heads[i - 1](patch_tokens)


HEADS: dict[str, type[SharedHead] | type[PerLayerHeads]] = {"shared": SharedHead, "per_layer": PerLayerHeads}

"""FLOPs of each part of an adaptive model, counted by torch's FLOP counter rather than by formulas of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

if TYPE_CHECKING:
    from adadiff.exits.adaptive import AdaptiveModel


def flop_counter() -> FlopCounterMode:
    """Return torch's FLOP counter, extended by the CPU's fused attention, which it otherwise counts as 0 FLOPs."""
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def formula(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    return FlopCounterMode(display=False, custom_mapping={cpu_attention: formula})


@dataclass(frozen=True)
class PartFlops:
    """FLOPs of each part, for one sample at one step (a multiply-add counts 2).

    Args:
        embed: From the image to the first layer.
        layers: Of layers 1..N, (N,) int64.
        heads: Of the output heads after layers 1..N, (N,) int64.
        estimators: Of the uncertainty estimators after layers 1..N, (N,) int64.
    """

    embed: int
    layers: Tensor
    heads: Tensor
    estimators: Tensor

    @property
    def full(self) -> int:
        """FLOPs of the full model: all layers and the last head, no estimator."""
        return self.embed + int(self.layers.sum() + self.heads[-1])

    def until_exit(self, exit_layers: Tensor, estimated: Tensor, corrected: Sequence[int] = ()) -> Tensor:
        """Return the FLOPs of samples that exited after the given layers.

        Args:
            exit_layers: Exit layers in 1..N, any shape, int64.
            estimated: For each of the layers 1..N whether an estimator ran after it, (N,) bool.
            corrected: The layers, 1..N-1, whose head also ran for samples that went on, to measure corrections.

        Returns:
            FLOPs, shaped like `exit_layers`, int64.
        """
        through_layer = (self.layers + self.estimators * estimated).cumsum(0)
        spent = self.embed + through_layer[exit_layers - 1] + self.heads[exit_layers - 1]
        for layer in corrected:
            spent += self.heads[layer - 1] * (exit_layers > layer)
        return spent


def count_part_flops(model: AdaptiveModel) -> PartFlops:
    """Count the FLOPs of each part by running it once for one sample on the meta device, which computes nothing."""
    with torch.device("meta"):
        twin = type(model).from_config(model.config)
        backbone = twin.backbone
        sample = torch.empty(1, backbone.in_channels, *backbone.sample_size)
        timestep = torch.zeros(1)
        class_labels = None if backbone.num_classes is None else torch.zeros(1, dtype=torch.int64)
        context = None if backbone.context_shape is None else torch.empty(1, *backbone.context_shape)

    def counted(part: Any, *args: Any) -> tuple[int, Any]:
        with torch.no_grad(), flop_counter() as counter:
            result = part(*args)
        return counter.get_total_flops(), result

    embed, state = counted(backbone.embed, sample, timestep, class_labels, context)
    layers, heads, estimators = [], [], []
    for i in range(1, backbone.depth + 1):
        before = state
        flops, state = counted(backbone.layer, i, state)
        layers.append(flops)
        heads.append(counted(twin.predict, i, state)[0])
        estimators.append(counted(twin.uncertainty, i, state, before)[0])
    return PartFlops(embed, torch.tensor(layers), torch.tensor(heads), torch.tensor(estimators))

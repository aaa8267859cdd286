"""FLOPs of each part of a model with exits, counted by torch's FLOP counter rather than by formulas of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from adadiff.runtime import ExitNetwork, PartFlops


def flop_counter() -> FlopCounterMode:
    """Return torch's FLOP counter, extended by the CPU's fused attention, which it otherwise counts as 0 FLOPs."""
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def formula(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    return FlopCounterMode(display=False, custom_mapping={cpu_attention: formula})


def count_part_flops(network: ExitNetwork) -> PartFlops:
    """Count the FLOPs of each part by running it once for one sample on the meta device, which computes nothing.

    Args:
        network: A model with exits whose weights are on the meta device.
    """
    backbone = network.backbone
    with torch.device("meta"):
        inputs = backbone.example_inputs(1)

    def counted(part: Any, *args: Any) -> tuple[int, Any]:
        with torch.no_grad(), flop_counter() as counter:
            result = part(*args)
        return counter.get_total_flops(), result

    embed, state = counted(backbone.embed, *inputs)
    layers, heads, estimators = [], [], []
    for i in range(1, backbone.depth + 1):
        before = state
        flops, state = counted(backbone.layer, i, state)
        layers.append(flops)
        heads.append(counted(network.predict, i, state)[0])
        estimators.append(counted(network.uncertainty, i, state, before)[0])
    return PartFlops(embed, torch.tensor(layers), torch.tensor(heads), torch.tensor(estimators))

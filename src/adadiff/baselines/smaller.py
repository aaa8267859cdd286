"""Smaller networks cut out of a trained one, with fewer or narrower layers, to be fine-tuned."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adadiff.backbones import UViT, backbone_settings
from adadiff.backbones.uvit import Layer
from adadiff.exits import AdaptiveModel
from adadiff.utils.errors import InputError


def drop_layers(model: AdaptiveModel, depth: int) -> AdaptiveModel:
    """Build a U-ViT of fewer layers: the outer layers at both ends with their skips, and the middle layer.

    Args:
        model: A trained U-ViT of N layers.
        depth: Number of layers of the new model, odd, 1..N.

    Raises:
        InputError: If the model is not a U-ViT, or the depth is out of range or even.
    """
    backbone = _require_uvit(model, "dropping layers")
    if not 1 <= depth <= model.depth or depth % 2 == 0:
        raise InputError(f"{depth} layers of {model.depth}: it must be an odd number, at most {model.depth}")
    half = depth // 2
    places = [*range(half), model.depth // 2, *range(model.depth - half, model.depth)]
    smaller = _rebuilt(model, depth=depth)
    layers = [copy.deepcopy(backbone.layers[place]) for place in places]
    _take_over(smaller, backbone, layers)
    return smaller


def prune(model: AdaptiveModel, compute: float) -> AdaptiveModel:
    """Build a narrower U-ViT by removing the least important attention heads and hidden units of each layer.

    Heads and hidden units are removed in equal proportion until the full model's FLOPs reach the requested fraction;
    since heads are few, hidden units make up for the rounding. A unit's importance is the norm of all its incoming and
    outgoing weights (Fang et al., CVPR 2023, arXiv 2301.12900); torch-pruning removes the units.

    Args:
        model: A trained U-ViT.
        compute: FLOPs over the model's, in (0, 1].

    Raises:
        InputError: If the model is not a U-ViT, the fraction cannot be reached, or torch-pruning is not installed.
    """
    backbone = _require_uvit(model, "pruning")
    if not 0 < compute <= 1:
        raise InputError(f"the compute is {compute}: it must be a fraction above 0 and at most 1")
    first = backbone.layers[0]
    assert isinstance(first, Layer)
    heads, hidden = first.attn.num_heads, first.mlp.fc1.out_features
    head_dim = first.attn.proj.in_features // heads
    kept_heads, kept_hidden = _sizes_for(model, compute, heads, head_dim, hidden)
    layers = [_pruned(copy.deepcopy(layer), kept_heads, head_dim, kept_hidden) for layer in backbone.layers]
    smaller = _rebuilt(model, num_heads=kept_heads, head_dim=head_dim, mlp_ratio=kept_hidden / backbone.width)
    _take_over(smaller, backbone, layers)
    return smaller


def _sizes_for(model: AdaptiveModel, compute: float, heads: int, head_dim: int, hidden: int) -> tuple[int, int]:
    """Return the numbers of heads and hidden units to keep.

    Heads are rounded first, in the proportion that both would need; hidden units then meet the compute.
    """

    def flops(kept_heads: int, kept_hidden: int) -> int:
        ratio = kept_hidden / model.backbone.width
        with torch.device("meta"):
            smaller = _rebuilt(model, num_heads=kept_heads, head_dim=head_dim, mlp_ratio=ratio)
        return smaller.part_flops.full

    whole, least = flops(heads, hidden), flops(1, 1)
    wanted = compute * whole
    if wanted < least:
        raise InputError(
            f"the compute is {compute}: pruning heads and hidden units reaches {least / whole:.2f} at the least"
        )
    share = (wanted - least) / (whole - least)
    kept_heads = max(1, round(share * heads))
    per_unit = (flops(kept_heads, hidden) - flops(kept_heads, 1)) / (hidden - 1)
    kept_hidden = round(1 + (wanted - flops(kept_heads, 1)) / per_unit)
    return kept_heads, min(max(kept_hidden, 1), hidden)


def _pruned(layer: nn.Module, heads: int, head_dim: int, hidden: int) -> nn.Module:
    try:
        import torch_pruning
    except ImportError as error:
        raise InputError("pruning needs torch-pruning: pip install 'adadiff[baselines]'") from error
    assert isinstance(layer, Layer)
    qkv, proj, fc1, fc2 = layer.attn.qkv, layer.attn.proj, layer.mlp.fc1, layer.mlp.fc2
    old_heads = layer.attn.num_heads

    rows = qkv.weight.detach().unflatten(0, (3, old_heads, head_dim)).square().sum((0, 2, 3))
    columns = proj.weight.detach().unflatten(1, (old_heads, head_dim)).square().sum((0, 2))
    dropped = _least(rows + columns, old_heads - heads)
    channels = [head * head_dim + place for head in dropped for place in range(head_dim)]
    torch_pruning.prune_linear_in_channels(proj, channels)
    inner = old_heads * head_dim
    torch_pruning.prune_linear_out_channels(qkv, [part * inner + place for part in range(3) for place in channels])
    layer.attn.num_heads = heads

    importance = fc1.weight.detach().square().sum(1) + fc1.bias.detach().square() + fc2.weight.detach().square().sum(0)
    units = _least(importance, fc1.out_features - hidden)
    torch_pruning.prune_linear_out_channels(fc1, units)
    torch_pruning.prune_linear_in_channels(fc2, units)
    return layer


def _least(importance: Tensor, count: int) -> list[int]:
    return importance.argsort()[:count].tolist()


def _require_uvit(model: AdaptiveModel, what: str) -> UViT:
    if not isinstance(model.backbone, UViT):
        raise InputError(f"{what} is made for U-ViT, and this model is a {model.config.backbone_type}")
    return model.backbone


def _rebuilt(model: AdaptiveModel, **changes: Any) -> AdaptiveModel:
    settings = {name: value for name, value in model.config.items() if not name.startswith("_")}
    backbone = model.backbone
    changed = backbone_settings(replace(backbone.config, **changes), backbone.inputs)
    return AdaptiveModel(**{**settings, "backbone_config": changed})


def _take_over(smaller: AdaptiveModel, backbone: UViT, layers: list[nn.Module]) -> None:
    """Load the given layers and the trained backbone's other weights into the smaller model; reset its exits."""
    weights = {name: value for name, value in backbone.state_dict().items() if not name.startswith("layers.")}
    smaller.backbone.load_state_dict({**weights, **nn.ModuleList(layers).state_dict(prefix="layers.")})
    smaller.start_from(smaller.backbone)

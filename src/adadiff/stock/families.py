"""Families of diffusers transformers: which of a model's lists of blocks are its layers.

A new family is one line in `FAMILIES`. A model of an unknown class is recognised by the usual names of such lists.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from adadiff.utils.errors import InputError


@dataclass(frozen=True)
class Family:
    """What is known of the transformers of one class.

    Args:
        layers: Attributes of the model that are lists of blocks, in the order they run; each block is a layer. Two
            lists joined by `+` run in turns, and a block of each makes one layer.
        refiners: Lists of blocks that run before the layers at every step, exits included.
        refused: Arguments of the model that cannot be given while it is cut, each with the reason.
    """

    layers: tuple[str, ...]
    refiners: tuple[str, ...] = ()
    refused: Mapping[str, str] | None = None


_TRANSFORMER_BLOCKS = Family(("transformer_blocks",))
_DOUBLE_THEN_SINGLE = Family(("transformer_blocks", "single_transformer_blocks"))
_BLOCKS = Family(("blocks",))
_LAYERS = Family(("layers",))
_DOUBLE_BLOCKS = Family(("double_blocks",))
_VISUAL = Family(("visual_transformer_blocks",))

FAMILIES: dict[str, Family] = {
    "AceStepTransformer1DModel": _LAYERS,
    "AllegroTransformer3DModel": _TRANSFORMER_BLOCKS,
    "AnyFlowTransformer3DModel": _BLOCKS,
    "AuraFlowTransformer2DModel": Family(("joint_transformer_blocks", "single_transformer_blocks")),
    "BriaFibo2Transformer2DModel": _LAYERS,
    "BriaFiboTransformer2DModel": _DOUBLE_THEN_SINGLE,
    "BriaTransformer2DModel": _DOUBLE_THEN_SINGLE,
    "ChromaTransformer2DModel": _DOUBLE_THEN_SINGLE,
    "ChronoEditTransformer3DModel": _BLOCKS,
    "CogVideoXTransformer3DModel": _TRANSFORMER_BLOCKS,
    "CogView3PlusTransformer2DModel": _TRANSFORMER_BLOCKS,
    "CogView4Transformer2DModel": _TRANSFORMER_BLOCKS,
    "ConsisIDTransformer3DModel": _TRANSFORMER_BLOCKS,
    "CosmosTransformer3DModel": _TRANSFORMER_BLOCKS,
    "DiTTransformer2DModel": _TRANSFORMER_BLOCKS,
    "EasyAnimateTransformer3DModel": _TRANSFORMER_BLOCKS,
    "ErnieImageTransformer2DModel": _LAYERS,
    "Flux2Transformer2DModel": _DOUBLE_THEN_SINGLE,
    "Flux3Transformer2DModel": Family(("single_transformer_blocks",)),
    "FluxTransformer2DModel": _DOUBLE_THEN_SINGLE,
    "GlmImageTransformer2DModel": _TRANSFORMER_BLOCKS,
    "HeliosTransformer3DModel": _BLOCKS,
    "HiDreamImageTransformer2DModel": Family(("double_stream_blocks", "single_stream_blocks")),
    "HunyuanDiT2DModel": Family(
        ("blocks",), refused={"controlnet_block_samples": "a ControlNet for HunyuanDiT counts on all blocks"}
    ),
    "HunyuanImageTransformer2DModel": _DOUBLE_THEN_SINGLE,
    "HunyuanVideo15Transformer3DModel": _TRANSFORMER_BLOCKS,
    "HunyuanVideoFramepackTransformer3DModel": _DOUBLE_THEN_SINGLE,
    "HunyuanVideoTransformer3DModel": _DOUBLE_THEN_SINGLE,
    "Ideogram4Transformer2DModel": _LAYERS,
    "JoyImageEditPlusTransformer3DModel": _DOUBLE_BLOCKS,
    "JoyImageEditTransformer3DModel": _DOUBLE_BLOCKS,
    "Kandinsky5Transformer3DModel": _VISUAL,
    "Kandinsky6SRTransformer3DModel": _VISUAL,
    "Kandinsky6Transformer3DModel": _VISUAL,
    "Krea2Transformer2DModel": _TRANSFORMER_BLOCKS,
    "LTX2VideoTransformer3DModel": _TRANSFORMER_BLOCKS,
    "LTXVideoTransformer3DModel": _TRANSFORMER_BLOCKS,
    "LatteTransformer3DModel": Family(("transformer_blocks+temporal_transformer_blocks",)),
    "LongCatAudioDiTTransformer": _BLOCKS,
    "LongCatImageTransformer2DModel": _DOUBLE_THEN_SINGLE,
    "Lumina2Transformer2DModel": Family(("layers",), refiners=("context_refiner", "noise_refiner")),
    "LuminaNextDiT2DModel": _LAYERS,
    "MiniMaxH3Transformer3DModel": _TRANSFORMER_BLOCKS,
    "MiniMaxMusic3Transformer1DModel": _TRANSFORMER_BLOCKS,
    "MochiTransformer3DModel": _TRANSFORMER_BLOCKS,
    "MotifVideoTransformer3DModel": _DOUBLE_THEN_SINGLE,
    "NucleusMoEImageTransformer2DModel": _TRANSFORMER_BLOCKS,
    "OmniGenTransformer2DModel": _LAYERS,
    "OvisImageTransformer2DModel": _DOUBLE_THEN_SINGLE,
    "PRXTransformer2DModel": _BLOCKS,
    "PixArtTransformer2DModel": _TRANSFORMER_BLOCKS,
    "QwenImage21Transformer2DModel": _TRANSFORMER_BLOCKS,
    "QwenImageTransformer2DModel": _TRANSFORMER_BLOCKS,
    "SD3Transformer2DModel": _TRANSFORMER_BLOCKS,
    "SanaTransformer2DModel": _TRANSFORMER_BLOCKS,
    "SanaVideoTransformer3DModel": _TRANSFORMER_BLOCKS,
    "SanaWMLTX2RefinerTransformer3DModel": _TRANSFORMER_BLOCKS,
    "SanaWMTransformer3DModel": _BLOCKS,
    "SkyReelsV2Transformer3DModel": _BLOCKS,
    "StableAudio3DiTModel": _TRANSFORMER_BLOCKS,
    "StableAudioDiTModel": _TRANSFORMER_BLOCKS,
    "WanAnimate2Transformer3DModel": _BLOCKS,
    "WanAnimateTransformer3DModel": _BLOCKS,
    "WanTransformer3DModel": _BLOCKS,
    "WanVACETransformer3DModel": _BLOCKS,
    "ZImageTransformer2DModel": Family(("layers",), refiners=("noise_refiner", "context_refiner")),
}
"""Families by the name of the model's class."""

REFUSED: dict[str, str] = {
    "AnyFlowFARTransformer3DModel": "it keeps every block's keys and values from frame to frame",
    "Cosmos3OmniTransformer": "it takes several time steps, and one per token",
    "DreamLiteTransformer2DModel": "it is a part of a U-Net",
    "MiniMaxMusic3RVQDepthDecoder": "it decodes tokens, and is called at no time step",
    "PriorTransformer": "it predicts an embedding for a U-Net",
    "RFD4ProteinaTransformer": "it takes several time steps",
    "T5FilmDecoder": "it is called at no time step of a scheduler",
    "Transformer2DModel": "it is a part of U-Nets, and of VQ-Diffusion, which predicts discrete tokens",
    "TransformerTemporalModel": "it is a part of a U-Net",
}
"""Classes of diffusers that are refused, each with the reason."""

USUAL_NAMES = ("transformer_blocks", "double_blocks", "blocks", "layers", "single_transformer_blocks")
"""Names of lists of layers in models of unknown class, in the order they run."""

TIME_NAMES = ("timestep", "timesteps", "t")
HAS_UNET = "has a U-Net, and adadiff cuts transformers alone"
CACHE_NAMES = ("kv_cache", "kv_caches")
HOW_TO_NAME = 'name its lists of blocks in the order they run: enable(pipe, policy, layers=("my_blocks",))'


def family_of(model: nn.Module, layers: Sequence[str] | None = None) -> Family:
    """Return the family of a transformer.

    Args:
        model: The transformer.
        layers: Names of its lists of blocks, in the order they run; None to look them up.

    Raises:
        InputError: If the class is refused or unknown, or a named list is not there.
    """
    classes = [cls.__name__ for cls in type(model).__mro__]
    if layers is not None:
        named = (layers,) if isinstance(layers, str) else tuple(layers) if isinstance(layers, Iterable) else ()
        if not named or not all(isinstance(name, str) for name in named):
            raise InputError(f"layers is {layers!r}: {HOW_TO_NAME}, or leave it out")
        return _checked(model, Family(named))
    for name in classes:
        if name in FAMILIES:
            return _checked(model, FAMILIES[name])
        if name in REFUSED:
            raise InputError(f"{type(model).__name__} cannot be cut to fewer layers: {REFUSED[name]}")
    usual = tuple(name for name in USUAL_NAMES if isinstance(model._modules.get(name), nn.ModuleList))
    if not usual:
        raise InputError(f"{type(model).__name__} is not a transformer that adadiff knows: {HOW_TO_NAME}")
    return _checked(model, Family(usual))


def time_name(model: nn.Module) -> str:
    """Return which argument of the transformer is the time step.

    Raises:
        InputError: If there is none.
    """
    parameters = inspect.signature(type(model).forward).parameters
    for name in TIME_NAMES:
        if name in parameters:
            return name
    raise InputError(f"{type(model).__name__} takes no time step ({', '.join(TIME_NAMES)}): it cannot be accelerated")


def check_arguments(family: Family, arguments: Mapping[str, Any]) -> None:
    """Raise InputError if a call's arguments do not allow to cut the model; `arguments` are those given, by name."""
    for name, reason in (family.refused or {}).items():
        if arguments.get(name) is not None:
            raise InputError(f"{name} cannot be given while adadiff is enabled: {reason}; call adadiff.disable(pipe)")
    for name in CACHE_NAMES:
        if arguments.get(name) is not None:
            raise InputError(f"{name} cannot be given while adadiff is enabled: a cut model fills no cache")


def _checked(model: nn.Module, family: Family) -> Family:
    names = [name for group in family.layers for name in group.split("+")]
    if len(set(names)) < len(names):
        raise InputError(f"a list of blocks is named twice: {', '.join(names)}")
    lists = [name for name, child in model.named_children() if isinstance(child, nn.ModuleList)]
    for name in names:
        if name not in lists:
            known = f"its lists are {', '.join(lists)}" if lists else "it has none"
            raise InputError(f"{type(model).__name__} has no list of blocks {name!r}: {known}; {HOW_TO_NAME}")
    if not any(len(model._modules[name]) for name in names):  # type: ignore[arg-type]
        raise InputError(f"{type(model).__name__} has no blocks in {', '.join(names)}: {HOW_TO_NAME}")
    return family

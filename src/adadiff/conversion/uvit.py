"""Checkpoints of the U-ViT and AdaDiff releases: flat dictionaries of tensors with names of their own.

The releases name the first half of the layers `in_blocks`, the middle one `mid_block`, the second half `out_blocks`.
AdaDiff adds `lte_classifer` (sic), one linear map per layer on the patch tokens. It predicts certainty, one minus the
uncertainty. Since sigmoid(-z) = 1 - sigmoid(z), negating its weights gives those of a `TokenEstimator`.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adadiff.backbones import InputSpec, UViTConfig, backbone_settings
from adadiff.exits import AdaptiveModel
from adadiff.utils.errors import InputError

ESTIMATOR = "lte_classifer"
CLIP_LENGTH = 77
IMAGENET_CLASSES = 1000

RENAMED = {
    "patch_embed.proj": "backbone.patch_embed",
    "time_embed": "backbone.time_embed",
    "label_emb": "backbone.class_embed",
    "context_embed": "backbone.context_embed",
    "pos_embed": "backbone.position",
    "norm": "backbone.head.norm",
    "decoder_pred": "backbone.head.linear",
    "final_layer": "backbone.head.conv",
}
"""Released names mapped to ours, except for layers and estimators."""


@dataclass(frozen=True)
class ReleasedSizes:
    """The sizes of a released network that can be read from the shapes of its tensors.

    Args:
        sample_size: Side of the square image or latent.
        in_channels: Channels of the image or latent.
        patch_size: Side of a patch.
        width: Number of values in a token.
        depth: Number of layers, including the middle one.
        mlp_ratio: Hidden size of the MLP over the width.
        time_mlp: Whether the time embedding goes through an MLP.
        final_conv: Whether the head ends in a convolution.
        num_classes: Size of the class table, if there is one.
        context_dim: Size of a text feature, if it takes text.
        context_length: Number of text features, if it takes text.
        estimators: Whether it has an uncertainty estimator after each layer, as AdaDiff's networks have.
    """

    sample_size: int
    in_channels: int
    patch_size: int
    width: int
    depth: int
    mlp_ratio: float
    time_mlp: bool
    final_conv: bool
    num_classes: int | None
    context_dim: int | None
    context_length: int | None
    estimators: bool

    @classmethod
    def of(cls, released: dict[str, Tensor], context_length: int | None = None) -> ReleasedSizes:
        """Read the sizes from the shapes of the tensors.

        Args:
            released: The tensors, as `read_released` returns them.
            context_length: Number of text features, for a network that takes text; by default CLIP's, 77.

        Raises:
            InputError: If a required tensor is missing or has another rank, or the sizes do not fit together.
        """
        try:
            width, in_channels, patch_size, _ = released["patch_embed.proj.weight"].shape
            hidden = released["mid_block.mlp.fc1.weight"].shape[0]
            tokens = released["pos_embed"].shape[1]
            num_classes = released["label_emb.weight"].shape[0] if "label_emb.weight" in released else None
            context_dim = released["context_embed.weight"].shape[1] if "context_embed.weight" in released else None
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(
                f"these are not the weights of a released U-ViT ({error}): give a state dict with patch_embed.proj, "
                f"pos_embed, in_blocks, mid_block, out_blocks, ..."
            ) from error
        if context_dim is None and context_length is not None:
            raise InputError("the weights are of a network that takes no text: leave --context-length out")
        length = None if context_dim is None else context_length or CLIP_LENGTH
        extra = 1 + (num_classes is not None) + (length or 0)
        side = math.isqrt(max(tokens - extra, 0))
        if side == 0 or side**2 != tokens - extra:
            of_text = "" if length is None else f" ({length} of text; set --context-length if it has another number)"
            raise InputError(
                f"pos_embed has {tokens} tokens, but {extra}{of_text} plus a square number of patches are expected"
            )
        half = len({name.split(".")[1] for name in released if name.startswith("in_blocks.")})
        return cls(
            sample_size=side * patch_size,
            in_channels=in_channels,
            patch_size=patch_size,
            width=width,
            depth=2 * half + 1,
            mlp_ratio=hidden / width,
            time_mlp="time_embed.0.weight" in released,
            final_conv="final_layer.weight" in released,
            num_classes=num_classes,
            context_dim=context_dim,
            context_length=length,
            estimators=any(name.startswith(f"{ESTIMATOR}.") for name in released),
        )

    @property
    def null_class(self) -> int | None:
        """The last class, which the releases use as null class, or None for a table of ImageNet's 1,000 classes."""
        return None if self.num_classes in (None, IMAGENET_CLASSES) else self.num_classes - 1


def read_released(path: Path) -> dict[str, Tensor]:
    """Read a `.pth` file without executing anything in it.

    Raises:
        InputError: If the file is missing or damaged, or holds anything but a flat dictionary of tensors.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        released = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"{path} is damaged, or holds more than tensors, which is never executed: give a plain state dict"
        ) from error
    if not isinstance(released, dict) or not all(isinstance(value, Tensor) for value in released.values()):
        raise InputError(f"{path} holds no plain state dict: give a dictionary from names to tensors")
    return released


def from_released(
    released: dict[str, Tensor],
    num_heads: int,
    network_time: dict[str, float],
    null_class: int | None = None,
    context_length: int | None = None,
) -> AdaptiveModel:
    """Build an adaptive model with a released network's weights, and new estimators if the release has none.

    Args:
        released: The tensors, as `read_released` returns them.
        num_heads: Number of attention heads, the one size that cannot be read from the tensors.
        network_time: The backbone's time settings, from `DiffusionConfig.network_time`.
        null_class: The class that stands for "no class", if the network was trained with one.
        context_length: Number of text features, for a network that takes text; by default CLIP's, 77.

    Raises:
        InputError: If names or shapes do not fit; the message lists the first few.
    """
    sizes = ReleasedSizes.of(released, context_length)
    config = UViTConfig(
        patch_size=sizes.patch_size,
        width=sizes.width,
        depth=sizes.depth,
        num_heads=num_heads,
        mlp_ratio=sizes.mlp_ratio,
        time_mlp=sizes.time_mlp,
        final_conv=sizes.final_conv,
    )
    inputs = InputSpec(
        (sizes.sample_size, sizes.sample_size),
        sizes.in_channels,
        num_classes=sizes.num_classes,
        context_length=sizes.context_length or CLIP_LENGTH,
        context_dim=sizes.context_dim,
        **network_time,
    )
    model = AdaptiveModel(
        sample_size=sizes.sample_size,
        in_channels=sizes.in_channels,
        backbone_config=backbone_settings(config, inputs),
        estimator_type="token" if sizes.estimators else "concat",
        null_class=null_class,
    ).eval()
    names = {released_name(name, sizes.depth): name for name in model.state_dict()}
    if not sizes.estimators:
        names = {theirs: ours for theirs, ours in names.items() if not ours.startswith("estimators.")}
    _check_fit(released, {theirs: model.state_dict()[ours] for theirs, ours in names.items()})
    ours = {names[name]: -value if name.startswith(ESTIMATOR) else value for name, value in released.items()}
    model.load_state_dict({**model.state_dict(), **ours})
    return model


def to_released(model: AdaptiveModel) -> dict[str, Tensor]:
    """Return the weights by the names of the U-ViT release, with AdaDiff's estimators if ours are `"token"`.

    Raises:
        InputError: If the model has output heads per layer, which the releases have no names for.
    """
    if model.config.head_type != "shared":
        raise InputError(
            "the model has one output head per layer, but the released format has one output head for all layers"
        )
    keeps_estimators = model.config.estimator_type == "token"
    released = {}
    for name, value in model.state_dict().items():
        if name.startswith("estimators."):
            if keeps_estimators:
                released[released_name(name, model.depth)] = -value
        else:
            released[released_name(name, model.depth)] = value.clone()
    return released


def released_name(name: str, depth: int) -> str:
    """Return the released name of one of our tensors."""
    half = depth // 2
    parts = name.split(".")
    if parts[0] == "estimators":
        return ".".join([ESTIMATOR, parts[1], "lte", *parts[3:]])
    if parts[1] == "layers":
        place, rest = int(parts[2]), parts[3:]
        if place == half:
            return ".".join(["mid_block", *rest])
        blocks, number = ("in_blocks", place) if place < half else ("out_blocks", place - half - 1)
        return ".".join([blocks, str(number), *rest])
    theirs, ours = next(pair for pair in RENAMED.items() if name == pair[1] or name.startswith(f"{pair[1]}."))
    return theirs + name.removeprefix(ours)


def _check_fit(released: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raise InputError if names or shapes differ."""
    misfits = [f"{name} is missing" for name in wanted if name not in released]
    misfits += [f"{name} is unknown" for name in released if name not in wanted]
    misfits += [
        f"{name} has shape {tuple(released[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in released and released[name].shape != wanted[name].shape
    ]
    if misfits:
        more = f", and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise InputError(f"the weights do not fit a U-ViT of their sizes: {'; '.join(misfits[:3])}{more}")

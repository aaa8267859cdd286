"""Conversion of a released checkpoint to a complete model folder, and of a model folder to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from adadiff.backbones import UViTConfig, backbone_of
from adadiff.conditioning import TransformersTextEncoder
from adadiff.conversion.uvit import CLIP_LENGTH, ReleasedSizes, from_released, read_released, to_released
from adadiff.data import load_vae
from adadiff.sampling import AdaptivePipeline
from adadiff.training.presets import DPM_SOLVER, PRESETS, SDE, STABLE_DIFFUSION, Preset
from adadiff.utils.errors import InputError, lookup
from adadiff.utils.files import atomic_folder, atomic_write, require_empty_folder


def convert_to_folder(
    file: Path,
    out: Path,
    preset: str | None = None,
    num_heads: int | None = None,
    vae: str | None = None,
    scaling_factor: float | None = None,
    text_encoder: str | None = None,
    context_length: int | None = None,
) -> ReleasedSizes:
    """Convert a checkpoint of the U-ViT or AdaDiff release to a model folder.

    Args:
        file: The `.pth` file.
        out: The output folder, new or empty.
        preset: The preset that the checkpoint belongs to; it gives the attention heads, forward process and sampling.
        num_heads: Number of attention heads, instead of a preset. The forward process is then Stable Diffusion's for
            networks that take text or have no final convolution, otherwise the SDE, as in all released configurations.
        vae: For a network of latents, the autoencoder that decodes them, by its name on the hub or its folder.
        scaling_factor: Scaling factor of the latents, instead of the autoencoder's.
        text_encoder: For a network that takes text, a text model of transformers, by its name on the hub or its folder.
        context_length: For a network that takes text, its number of text features; by default CLIP's, 77.

    Returns:
        The network's sizes.

    Raises:
        InputError: If the file does not hold such weights, their sizes differ from the preset's, or a part is missing.
    """
    require_empty_folder(out)
    released = read_released(file)
    sizes = ReleasedSizes.of(released, context_length)
    chosen = None if preset is None else lookup(preset, PRESETS, "preset")
    if chosen is not None:
        _check_preset(sizes, chosen, preset)
        num_heads = _uvit_of(chosen).num_heads
        diffusion, sampling = chosen.train.diffusion, chosen.train.sampling
    elif num_heads is None:
        raise InputError(
            "the number of attention heads cannot be read from the weights: give --num-heads, or their --preset"
        )
    else:
        discrete = sizes.context_dim is not None or not sizes.final_conv
        diffusion, sampling = STABLE_DIFFUSION if discrete else SDE, DPM_SOLVER
    model = from_released(released, num_heads, diffusion.network_time(), sizes.null_class, sizes.context_length)
    autoencoder = None if vae is None else load_vae(vae)
    if autoencoder is not None and scaling_factor is not None:
        autoencoder.register_to_config(scaling_factor=scaling_factor)
    encoder = None
    if text_encoder is not None:
        encoder = TransformersTextEncoder.from_pretrained(text_encoder, sizes.context_length or CLIP_LENGTH)
    if encoder is not None and encoder.shape != model.backbone.context_shape:
        length, width = model.backbone.context_shape or (0, 0)
        raise InputError(
            f"{text_encoder} gives {encoder.shape[0]} features of width {encoder.shape[1]}, but the network takes "
            f"{length} of width {width}: choose another --text-encoder or --context-length"
        )
    pipeline = AdaptivePipeline(model, diffusion.build(in_latents=sizes.in_channels == 4), encoder, autoencoder)
    with atomic_folder(out) as part:
        pipeline.save_pretrained(part)
        sampling.save(part)
    return sizes


def convert_to_file(folder: Path, out: Path) -> bool:
    """Write a model folder's network as a `.pth` file with the names of the releases.

    Returns:
        Whether the file contains the estimators; the format supports only `"token"` estimators.

    Raises:
        InputError: If the file exists, or the model has output heads per layer.
    """
    if out.exists():
        raise InputError(f"{out} exists already: choose another file")
    model = AdaptivePipeline.from_pretrained(folder, own_settings=False).transformer
    with atomic_write(out) as part:
        torch.save(to_released(model), part)
    return model.config.estimator_type == "token"


def _uvit_of(preset: Preset) -> UViTConfig:
    backbone = preset.train.model.backbone
    if not isinstance(backbone, UViTConfig):
        raise InputError(
            f"the preset's backbone is {backbone_of(backbone).name()}, but the released models are U-ViTs: choose a "
            f"preset with a U-ViT"
        )
    return backbone


def _check_preset(sizes: ReleasedSizes, preset: Preset, name: str | None) -> None:
    model = _uvit_of(preset)
    found = (sizes.in_channels, sizes.sample_size, sizes.patch_size, sizes.width, sizes.depth)
    expected = (*preset.shape[:2], model.patch_size, model.width, model.depth)
    if found != expected:
        kinds = ("channels", "side", "patch size", "width", "depth")
        differing = [f"{kind} {a}, not {b}" for kind, a, b in zip(kinds, found, expected, strict=True) if a != b]
        raise InputError(f"the weights do not have the sizes of {name}: {', '.join(differing)}")

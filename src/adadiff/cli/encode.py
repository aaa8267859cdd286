"""`adadiff encode`: encode images as latents."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from adadiff.cli.options import Dtype
from adadiff.cli.output import console, print_description
from adadiff.data import DataConfig
from adadiff.utils.ranges import Count, Positive, checked


@checked
def encode_command(
    out: Positional[Path],
    vae: str,
    data: DataConfig,
    scaling_factor: Positive | None = None,
    batch_size: Count = 16,
    dtype: Dtype = "float32",
    device: str = "auto",
) -> None:
    """Encode images as latents of an autoencoder, in a folder that `adadiff train` takes as --data.source.

    After an interruption the same command continues. With --data.flip every image is encoded a second time,
    mirrored.

    Args:
        out: Folder for the latents.
        vae: An AutoencoderKL of diffusers, by its name on the hub or its folder.
        data: The images.
        scaling_factor: Factor that latents are multiplied by before the diffusion; by default the autoencoder's.
        batch_size: Images per batch.
        dtype: Precision of the autoencoder.
        device: Device: cpu, cuda, ..., or auto for cuda if available.
    """
    import torch

    from adadiff.cli.shared import device_of
    from adadiff.data import ImageData, encode_to_folder, load_vae

    place = device_of(device)
    images = ImageData(data)
    print_description(images)
    autoencoder = load_vae(vae)
    torch.nn.Module.to(autoencoder, place, getattr(torch, dtype))  # without the warnings of diffusers' own `to`
    if scaling_factor is not None:
        autoencoder.register_to_config(scaling_factor=scaling_factor)
    count = encode_to_folder(images, autoencoder, out, batch_size)
    console.print(f"{count} latents in {out}; to train on them: --data.source {out}")

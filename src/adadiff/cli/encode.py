"""`adadiff encode`: images into latents."""

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
    """Turn images into latents of an autoencoder, kept in a folder that trainings take as --data.source.

    The same command run again goes on where it stopped. With --data.flip every image is encoded a second time,
    mirrored.

    Args:
        out: Folder for the latents.
        vae: An AutoencoderKL of diffusers, by its name on the hub or its folder.
        data: The images.
        scaling_factor: What latents are multiplied with before the diffusion; by default what the autoencoder says.
        batch_size: Images encoded at once.
        dtype: Arithmetic of the autoencoder.
        device: cpu, cuda, ..., or auto: cuda where there is one.
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
    number = encode_to_folder(images, autoencoder, out, batch_size)
    console.print(f"{number} latents in {out}; to train on them: --data.source {out}")

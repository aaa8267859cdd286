"""Images as latents of a variational autoencoder, computed once and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from adadiff.data.images import DataConfig, ImageData, LabelledData
from adadiff.errors import InputError
from adadiff.files import claim_folder, verify_checksums, whole_file, whole_folder, write_checksums
from adadiff.fingerprints import fingerprint, weights_of

DESCRIPTION = "latents.json"
SHARD_IMAGES = 1024


def load_vae(name: str) -> AutoencoderKL:
    """An autoencoder by its name on the hub or its folder, safetensors only.

    Raises:
        InputError: If there is no such autoencoder, it cannot be fetched, or its weights are damaged.
    """
    if Path(name).is_dir():
        verify_checksums(Path(name))
    try:
        return AutoencoderKL.from_pretrained(name, use_safetensors=True).eval().requires_grad_(False)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"{name} is neither a folder with an AutoencoderKL, nor one of that name that can be fetched from the hub"
        ) from error


class LatentData(LabelledData):
    """A folder that `encode_to_folder` made.

    Item k is a dict: `mean` and `std` of the latent, (channels, height, width) float32, times the scaling factor, and
    where there are, `label` (int) and `caption` (str).

    Args:
        config: Where the folder is; `config.size` is the side of the images that were encoded.

    Raises:
        InputError: If latents are missing, or of images of another size.
    """

    def __init__(self, config: DataConfig) -> None:
        folder = Path(config.source)
        description = json.loads((folder / DESCRIPTION).read_text())
        if description["size"] != config.size:
            raise InputError(
                f"{folder} holds latents of images of {description['size']} pixels, not {config.size}: set "
                f"--data.size {description['size']}, or encode the images again"
            )
        shards = sorted(str(path) for path in folder.glob("latents-*.parquet"))
        if len(shards) != description["shards"]:
            raise InputError(
                f"{folder} holds {len(shards)} of {description['shards']} files of latents: run adadiff encode again"
            )
        table = datasets.load_dataset("parquet", data_files=shards, split="train")
        columns = replace(config, label_column="label", caption_column="caption")
        super().__init__(columns, table.with_format("numpy", columns=["mean", "logvar"], output_all_columns=True))
        self.shape = tuple(description["shape"])
        self.vae = load_vae(str(folder / "vae"))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._table[index]
        assert self.vae is not None
        scale = self.vae.config.scaling_factor
        mean, logvar = (torch.from_numpy(row[name]) for name in ("mean", "logvar"))
        return {"mean": scale * mean, "std": scale * (logvar / 2).exp(), **self._label_and_caption(row)}


@torch.no_grad()
def encode_to_folder(images: ImageData, vae: AutoencoderKL, out: Path, batch_size: int = 16) -> int:
    """Write the latents of all images, in parquet files of 1,024 images; called again, it goes on where it stopped.

    Mean and log-variance are kept, so that training can draw from them. With `images.config.flip` every image is
    there twice, the second time mirrored, since a mirrored latent is not the mirrored image's.

    Args:
        images: What to encode.
        vae: The autoencoder; a copy of it is put into the folder, and with it its scaling factor, which latents are
            multiplied with before the diffusion.
        out: The folder: new, empty, or one begun with the same images and autoencoder.
        batch_size: Images encoded at once.

    Returns:
        The number of latents in the folder.

    Raises:
        InputError: If the folder holds something else, or latents of another autoencoder, other images or sizes.
    """
    starts = range(0, len(images), SHARD_IMAGES)
    features = _open_folder(images, vae, out, len(starts))
    with tqdm(total=len(images), desc="encoding", unit="image") as progress:
        for shard, start in enumerate(starts):
            numbers = range(start, min(start + SHARD_IMAGES, len(images)))
            path = out / f"latents-{shard:05d}.parquet"
            if not path.exists():
                rows = [row for few in _batches(numbers, batch_size) for row in _encode(images, few, vae)]
                with whole_file(path) as part:
                    datasets.Dataset.from_list(rows, features=features).to_parquet(part)
            progress.update(len(numbers))
    return len(images) * (2 if images.config.flip else 1)


def _encode(images: ImageData, numbers: Sequence[int], vae: AutoencoderKL) -> Iterator[dict[str, Any]]:
    """Rows of these images, then of their mirror images where wanted."""
    items = [images[k] for k in numbers]
    pixels = torch.stack([item.pop("image") for item in items]).to(vae.device, vae.dtype)
    for flipped in (False, True) if images.config.flip else (False,):
        latents = vae.encode(pixels.flip(3) if flipped else pixels).latent_dist
        for item, mean, logvar in zip(items, latents.mean.float().cpu(), latents.logvar.float().cpu(), strict=True):
            yield {"mean": mean.numpy(), "logvar": logvar.numpy(), **item}


def _batches(numbers: range, batch_size: int) -> list[range]:
    return [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]


def _open_folder(images: ImageData, vae: AutoencoderKL, out: Path, shards: int) -> datasets.Features:
    """Make the folder with its description and the autoencoder, or check that it was begun with the same ones."""
    channels, height, width = images.shape
    if channels != vae.config.in_channels:
        raise InputError(
            f"the autoencoder takes images of {vae.config.in_channels} channels, these have {channels}: "
            f"set --data.channels {vae.config.in_channels}"
        )
    blank = torch.zeros(1, channels, height, width, dtype=vae.dtype, device=vae.device)
    shape = vae.encode(blank).latent_dist.mean[0].shape
    config = images.config
    key = fingerprint([vae.config.scaling_factor, *weights_of(vae)])
    description = {
        **{"source": config.source, "split": config.split, "size": config.size, "flip": config.flip},
        **{"images": len(images), "shards": shards, "shape": list(shape), "vae": key},
    }
    claim_folder(out, DESCRIPTION, description, "latents made")
    if not (out / "vae").is_dir():
        with whole_folder(out / "vae") as part:
            vae.save_pretrained(part)
            write_checksums(part)
    array = datasets.Array3D(shape=tuple(shape), dtype="float32")
    return datasets.Features({"mean": array, "logvar": array, **images.condition_features})

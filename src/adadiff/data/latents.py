"""Data sets of latents: images encoded once by a variational autoencoder and stored on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from adadiff.data.config import DataConfig
from adadiff.data.images import ConditionName, ImageData, LabelledData
from adadiff.data.listing import TRAIN, choose_split
from adadiff.data.sources import Source, load_parquet
from adadiff.utils.errors import InputError, one_line
from adadiff.utils.files import (
    add_checksum,
    atomic_folder,
    atomic_write,
    claim_folder,
    exclusive_folder,
    read_checksums,
    read_json,
    require_empty_folder,
    verify_checksums,
    write_checksums,
)
from adadiff.utils.fingerprints import fingerprint, weights_of
from adadiff.utils.verified import require_finite, require_fitting

DESCRIPTION = "latents.json"
SHARD_IMAGES = 1024


def load_vae(name: str) -> AutoencoderKL:
    """Load an autoencoder from a folder or by its name on the hub; only safetensors files are read.

    Raises:
        InputError: If the autoencoder does not exist, cannot be fetched, or has damaged files.
    """
    folder = Path(name)
    if (folder / "config.json").is_file():
        verify_checksums(folder)
        read_json(folder / "config.json")
    try:
        vae, info = AutoencoderKL.from_pretrained(name, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        reason = one_line(error)
        raise InputError(
            f"{name} is neither a folder with an AutoencoderKL, nor the name of one that can be fetched from the hub "
            f"({type(error).__name__}: {reason})"
        ) from error
    require_fitting(info, name)
    require_finite(vae, name)
    return vae.eval().requires_grad_(False)


def shard_name(index: int) -> str:
    """Return the name of a parquet file, which holds the latents of 1,024 images."""
    return f"latents-{index:05d}.parquet"


class LatentData(LabelledData):
    """A data set of latents, read from a folder that `encode_to_folder` wrote.

    Item k is a dict: `mean` and `std` of the latent's distribution, (channels, height, width) float32, both multiplied
    by the scaling factor, and if the images have them, `label` (int) and `caption` (str).

    Args:
        config: The folder; `config.size` is the side of the images that were encoded.
        condition: The condition that a model needs with each latent, as `ImageData` takes it.

    Raises:
        InputError: If latents are missing or damaged, or were made from images of another size.
    """

    def __init__(self, config: DataConfig, condition: ConditionName | None = None) -> None:
        folder = Path(config.source)
        description = _read_description(folder)
        if description["size"] != config.size:
            raise InputError(
                f"{folder} holds latents of images of {description['size']} pixels, not {config.size}: set "
                f"--data.size {description['size']}, or encode the images again"
            )
        choose_split(config.split, [TRAIN], config.source)
        shards = [folder / shard_name(index) for index in range(description["shards"])]
        checksums = read_checksums(folder)
        complete = [path for path in shards if path.is_file() and (not checksums or path.name in checksums)]
        if len(complete) != len(shards):
            raise InputError(
                f"{folder} holds {len(complete)} of {len(shards)} files of latents: run adadiff encode again"
            )
        verify_checksums(folder)
        table = load_parquet(shards, folder)
        _require_columns(table, description["shape"], folder)
        columns = replace(config, label_column="label", caption_column="caption")
        super().__init__(columns, Source(table, str(folder), root=folder, files=shards))
        self._table = self._table.with_format("numpy", columns=["mean", "logvar"], output_all_columns=True)
        self.shape = tuple(description["shape"])
        self.vae = load_vae(str(folder / "vae"))
        self._require_condition(condition)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._table[index]
        assert self.vae is not None
        scale = self.vae.config.scaling_factor
        mean, logvar = (torch.from_numpy(row[name]) for name in ("mean", "logvar"))
        return {"mean": scale * mean, "std": scale * (logvar / 2).exp(), **self._label_and_caption(row)}

    @property
    def _noun(self) -> str:
        return "latents"


def _read_description(folder: Path) -> dict[str, Any]:
    """Read the folder's latents.json; raise InputError if a value is missing."""
    description = read_json(folder / DESCRIPTION)
    for name, kind in (("size", int), ("shards", int), ("shape", list)):
        if not isinstance(description.get(name), kind):
            raise InputError(f"{folder / DESCRIPTION} is damaged (it has no {name}): run adadiff encode again")
    return description


def _require_columns(table: datasets.Dataset, shape: Sequence[int], folder: Path) -> None:
    wanted = datasets.Array3D(shape=tuple(shape), dtype="float32")
    for name in ("mean", "logvar"):
        if table.features.get(name) != wanted:
            raise InputError(
                f"{folder} is damaged (its latents are not of the shape {shape}): run adadiff encode again"
            )


@torch.no_grad()
def encode_to_folder(images: ImageData, vae: AutoencoderKL, out: Path, batch_size: int = 16) -> int:
    """Write the latents of all images to parquet files of 1,024 images; an interrupted encoding is continued.

    Mean and log-variance are stored, so that training can draw latents from them. With `images.config.flip` every
    image is encoded twice, the second time mirrored, because mirroring a latent is not the same as encoding the
    mirrored image.

    Args:
        images: The images to encode.
        vae: The autoencoder; a copy is saved in the folder with its scaling factor, which latents are multiplied by
            before the diffusion.
        out: A new or empty folder, or one begun with the same images and autoencoder.
        batch_size: Images encoded per batch.

    Returns:
        The number of latents in the folder.

    Raises:
        InputError: If the folder holds other files or latents of other images or another autoencoder, another process
            is writing to it, or a latent is NaN or infinite.
    """
    starts = range(0, len(images), SHARD_IMAGES)
    shape = _latent_shape(images, vae)
    description = _describe(images, vae, shape, len(starts))
    if not (out / DESCRIPTION).is_file():
        require_empty_folder(out)
    with exclusive_folder(out), tqdm(total=len(images), desc="encoding", unit="image") as progress:
        claim_folder(out, DESCRIPTION, description, "latents made")
        _save_vae(vae, out / "vae")
        checksums = read_checksums(out)
        if DESCRIPTION not in checksums:
            add_checksum(out / DESCRIPTION)
        array = datasets.Array3D(shape=tuple(shape), dtype="float32")
        features = datasets.Features({"mean": array, "logvar": array, **images.condition_features})
        for shard, start in enumerate(starts):
            indices = range(start, min(start + SHARD_IMAGES, len(images)))
            path = out / shard_name(shard)
            if path.name not in checksums or not path.is_file():
                rows = [row for few in _batches(indices, batch_size) for row in _encode(images, few, vae)]
                with atomic_write(path) as part:
                    datasets.Dataset.from_list(rows, features=features).to_parquet(part)
                add_checksum(path)
            progress.update(len(indices))
    return len(images) * (2 if images.config.flip else 1)


def _encode(images: ImageData, indices: Sequence[int], vae: AutoencoderKL) -> Iterator[dict[str, Any]]:
    """Yield the table rows of these images, followed by those of their mirror images if flipping is on."""
    items = [images[k] for k in indices]
    pixels = torch.stack([item.pop("image") for item in items]).to(vae.device, vae.dtype)
    for flipped in (False, True) if images.config.flip else (False,):
        means, logvars = _distribution(vae, pixels.flip(3) if flipped else pixels)
        for item, mean, logvar in zip(items, means, logvars, strict=True):
            yield {"mean": mean.numpy(), "logvar": logvar.numpy(), **item}


def _distribution(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Encode images to mean and log-variance, both (batch, channels, height, width) float32, on the CPU."""
    latents = vae.encode(pixels).latent_dist
    mean, logvar = latents.mean.float().cpu(), latents.logvar.float().cpu()
    if not (mean.isfinite().all() and logvar.isfinite().all()):
        raise InputError(
            f"the autoencoder's latents in {str(vae.dtype).removeprefix('torch.')} are NaN or infinite: set "
            f"--dtype float32 and a new output folder, or choose another autoencoder"
        )
    return mean, logvar


def _batches(indices: range, batch_size: int) -> list[range]:
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def _latent_shape(images: ImageData, vae: AutoencoderKL) -> list[int]:
    """Return a latent's channels, height and width; raise InputError if the autoencoder cannot encode the images."""
    channels, height, width = images.shape
    if channels != vae.config.in_channels:
        raise InputError(
            f"the autoencoder takes images of {vae.config.in_channels} channels, and these have {channels}: "
            f"set --data.channels {vae.config.in_channels}"
        )
    blank = torch.zeros(1, channels, height, width, dtype=vae.dtype, device=vae.device)
    return list(_distribution(vae, blank)[0].shape[1:])


def _describe(images: ImageData, vae: AutoencoderKL, shape: Sequence[int], shards: int) -> dict[str, Any]:
    """Return everything that the latents depend on, as plain values."""
    config = images.config
    key = fingerprint([vae.config.scaling_factor, *weights_of(vae)])
    return {
        **{"data": images.identity(), "size": config.size, "flip": config.flip},
        "columns": [config.image_column, config.label_column, config.caption_column],
        **{"shards": shards, "shape": list(shape), "vae": key},
    }


def _save_vae(vae: AutoencoderKL, folder: Path) -> None:
    if not folder.is_dir():
        with atomic_folder(folder) as part:
            vae.save_pretrained(part)
            write_checksums(part)

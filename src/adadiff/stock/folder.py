"""Sampling a stock pipeline into a folder: PNG files, a grid, the trace as JSON; an interrupted run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from adadiff.sampling.folder import GRID_IMAGES, HOLDS, REQUEST, TRACE
from adadiff.sampling.grid import image_grid
from adadiff.sampling.images import SECONDS, image_path, noted_image, read_image
from adadiff.stock.record import StockTrace
from adadiff.stock.samples import StockSampler
from adadiff.stock.switch import trace
from adadiff.utils.errors import InputError
from adadiff.utils.files import atomic_write, claim_folder, exclusive_folder, write_bytes, write_json


@dataclass(frozen=True)
class StockSummary:
    """What sampling into a folder took.

    Args:
        trace: Trace of the last batch that this run sampled; None if all images were there already.
        sampled: Number of images that this run sampled.
        seconds: Seconds of sampling all images in the folder, summed over runs.
    """

    trace: StockTrace | None
    sampled: int
    seconds: float


def sample_stock_to_folder(
    sampler: StockSampler, out: Path, n: int, batch_size: int, request: dict[str, Any]
) -> StockSummary:
    """Sample images 0..n-1 of a stock pipeline, on which adadiff is enabled, into PNG files.

    Args:
        sampler: Calls the pipeline.
        out: A new or empty folder, or one begun with the same request.
        n: Number of images.
        batch_size: Images per call of the pipeline.
        request: All that the images depend on, as plain values.

    Raises:
        InputError: If the folder holds other files, another process writes to it, or the pipeline makes videos.
    """
    with exclusive_folder(out):
        claim_folder(out, REQUEST, request, HOLDS)
        missing = [k for k in range(n) if not image_path(out, k).exists()]
        found = None
        with tqdm(total=len(missing), desc="sampling", unit="image") as progress:
            for first in range(0, len(missing), batch_size):
                numbers = missing[first : first + batch_size]
                _sample_batch(sampler, out, numbers)
                found = trace(sampler.pipe)
                progress.update(len(numbers))
        if found is not None:
            write_json(out / TRACE, {"request": request, "calls": [asdict(call) for call in found.calls]})
            figure = Figure(figsize=(8, 4), layout="constrained")
            found.draw(figure.subplots())
            with atomic_write(out / "exits.png") as part:
                figure.savefig(part, dpi=120)
        with atomic_write(out / "grid.png") as part:
            image_grid([read_image(image_path(out, k)) for k in range(min(n, GRID_IMAGES))]).save(part)
        seconds = sum(json.loads(read_image(image_path(out, k)).info[SECONDS]) for k in range(n))  # one at a time
        return StockSummary(found, len(missing), seconds)


def as_images(samples: Tensor) -> Tensor:
    """Return decoded samples as images, (samples, channels, height, width) in [0, 1].

    Raises:
        InputError: If they are videos or sounds.
    """
    if samples.dim() != 4:
        raise InputError(f"the pipeline's samples have the shape {tuple(samples.shape)}: only images can be shown")
    return samples


def pictures(samples: Tensor) -> list[Image.Image]:
    """Return decoded samples, (samples, channels, height, width) in [0, 1], as pictures.

    Raises:
        InputError: If they are videos or sounds.
    """
    found: list[Image.Image] = DiffusionPipeline.numpy_to_pil(as_images(samples).permute(0, 2, 3, 1).numpy())
    return found


def _sample_batch(sampler: StockSampler, out: Path, numbers: Sequence[int]) -> None:
    start = time.perf_counter()
    images = pictures(sampler(numbers, "pt"))
    seconds = (time.perf_counter() - start) / len(numbers)
    for k, picture in zip(numbers, images, strict=True):
        write_bytes(image_path(out, k), noted_image(picture, {SECONDS: seconds}))

"""Sampled images as PNG files, each with its exits, FLOPs and seconds as PNG text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from adadiff.runtime.trace import Trace
from adadiff.utils.errors import InputError
from adadiff.utils.files import atomic_write

FLOPS = "flops"
TRACED = ("exit_layers", "guided", "unconditional_exit_layers", FLOPS)
SECONDS = "seconds"
PNG_END = b"IEND\xaeB`\x82"


def image_path(folder: Path, k: int) -> Path:
    """Return the file of image k."""
    return folder / f"{k:06d}.png"


def traced_image(image: Image.Image, trace: Trace, position: int, seconds: float) -> bytes:
    """Return an image as the content of a PNG file, with one sample's exits and FLOPs and its seconds as PNG text.

    Args:
        image: The image.
        trace: Trace of the image's batch.
        position: Position of the image in the batch.
        seconds: Seconds that sampling it took.
    """
    traced = {name: getattr(trace, name)[:, position].tolist() for name in TRACED}
    return noted_image(image, {**traced, SECONDS: seconds})


def noted_image(image: Image.Image, notes: Mapping[str, Any]) -> bytes:
    """Return an image as the content of a PNG file, with notes as PNG text: plain values by name."""
    text, content = PngInfo(), io.BytesIO()
    for name, value in notes.items():
        text.add_text(name, json.dumps(value))
    image.save(content, format="PNG", pnginfo=text)
    return content.getvalue()


def read_image(path: Path) -> Image.Image:
    """Read an image and decode its pixels.

    Raises:
        InputError: If the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # decoders raise many types
        raise InputError(
            f"{path} is missing or damaged ({error}): delete it, and run the same command again"
        ) from error


def decoded_images(contents: Sequence[bytes]) -> tuple[list[Image.Image], int]:
    """Decode PNG files whose text tells their FLOPs at each step; return the images with the FLOPs of all of them."""
    images: list[Image.Image] = [Image.open(io.BytesIO(content), formats=["PNG"]) for content in contents]
    return images, sum(sum(json.loads(image.info[FLOPS])) for image in images)


def pixels_of(images: Sequence[Image.Image]) -> Tensor:
    """Return the values of images of one size as a tensor, (images, channels, height, width) in [0, 1]."""
    pixels = np.stack([np.array(image) for image in images])
    # grey images have no axis of channels
    return torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1)).permute(0, 3, 1, 2) / 255


def read_traces(
    folder: Path, n: int, depth: int, full_flops: int, timesteps: Sequence[float], chunk: int
) -> Iterator[tuple[Trace, float]]:
    """Read the traces and seconds of images 0..n-1 from their PNG text, in chunks, without decoding pixels.

    Args:
        folder: Folder of the images.
        n: Number of images.
        depth: Layers of the full model.
        full_flops: FLOPs of the full model for one sample at one step.
        timesteps: Time of each step, (steps,) floats.
        chunk: Number of images per trace.

    Yields:
        The trace of each chunk, without uncertainties, and the seconds of its images in sum.

    Raises:
        InputError: If a file is missing, damaged, or holds no trace of these steps and layers.
    """
    for first in range(0, n, chunk):
        paths = [image_path(folder, k) for k in range(first, min(first + chunk, n))]
        notes = [_read_notes(path, len(timesteps), depth) for path in paths]
        traced = {name: torch.tensor([note[name] for note in notes]).T for name in TRACED}
        unknown = torch.tensor(torch.nan).expand(*traced["flops"].shape, depth)
        trace = Trace(
            **traced,
            depth=depth,
            full_flops=full_flops,
            timesteps=tuple(timesteps),
            uncertainties=unknown,
            unconditional_uncertainties=unknown,
        )
        yield trace, sum(note[SECONDS] for note in notes)


def with_lines(traces: Iterable[tuple[Trace, float]], path: Path) -> Iterator[tuple[Trace, float]]:
    """Yield the traces unchanged, and write a file, atomically, with one JSON line for each image."""
    with atomic_write(path) as part, part.open("w") as lines:
        k = 0
        for trace, seconds in traces:
            for columns in zip(*(getattr(trace, name).T.tolist() for name in TRACED), strict=True):
                lines.write(json.dumps({"image": k, **dict(zip(TRACED, columns, strict=True))}) + "\n")
                k += 1
            yield trace, seconds


def _read_notes(path: Path, steps: int, depth: int) -> dict[str, Any]:
    """Read the exits, FLOPs and seconds in an image's PNG text, without decoding the pixels."""
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), 2)
            if file.read() != PNG_END:
                raise ValueError("it is truncated")
            file.seek(0)
            with Image.open(file, formats=["PNG"]) as image:
                notes = {name: json.loads(image.info[name]) for name in (*TRACED, SECONDS)}
        layers = torch.tensor([notes[name] for name in TRACED[:2]])
        if layers.shape != (2, steps) or layers.max() > depth or len(notes["flops"]) != steps:
            raise ValueError("its trace has other steps or layers")
    except Exception as error:  # decoders raise many types
        raise InputError(
            f"{path} is damaged, or not an image of this run ({error}): move it away, and run the same command again"
        ) from error
    return notes

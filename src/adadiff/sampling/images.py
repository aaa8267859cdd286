"""Sampled images as PNG files, each with its exits, FLOPs and seconds as PNG text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adadiff.runtime.trace import Trace
from adadiff.utils.errors import InputError
from adadiff.utils.files import atomic_write

TRACED = ("exit_layers", "guided", "unconditional_exit_layers", "flops")
PNG_END = b"IEND\xaeB`\x82"


def image_path(folder: Path, k: int) -> Path:
    """Return the file of image k."""
    return folder / f"{k:06d}.png"


def write_image(path: Path, image: Image.Image, trace: Trace, position: int, seconds: float) -> None:
    """Write an image, atomically, with the exits of one sample of a trace and the time it took."""
    traced = {name: getattr(trace, name)[:, position].tolist() for name in TRACED}
    text = PngInfo()
    for name, value in {**traced, "seconds": seconds}.items():
        text.add_text(name, json.dumps(value))
    with atomic_write(path) as part:
        image.save(part, pnginfo=text)


def read_image(path: Path) -> Image.Image:
    """Read an image with its pixels.

    Raises:
        InputError: If the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # whatever a decoder raises
        raise InputError(f"{path} is missing or damaged ({error}): delete it, and sample it again") from error


def read_traces(
    folder: Path, n: int, depth: int, full_flops: int, timesteps: Sequence[float], chunk: int
) -> Iterator[tuple[Trace, float]]:
    """Read the traces of images 0..n-1 with the seconds they took, some images at a time, without their pixels.

    Args:
        folder: Of the images.
        n: Number of images.
        depth: Layers of the full model.
        full_flops: What the full model computes for one sample at one step.
        timesteps: Time of each step.
        chunk: Images of a trace.

    Raises:
        InputError: If a file is missing, damaged, or holds no such trace.
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
        yield trace, sum(note["seconds"] for note in notes)


def with_lines(traces: Iterable[tuple[Trace, float]], path: Path) -> Iterator[tuple[Trace, float]]:
    """Pass traces on, and on the way write a JSON line for each image, atomically."""
    with atomic_write(path) as part, part.open("w") as lines:
        k = 0
        for trace, seconds in traces:
            for columns in zip(*(getattr(trace, name).T.tolist() for name in TRACED), strict=True):
                lines.write(json.dumps({"image": k, **dict(zip(TRACED, columns, strict=True))}) + "\n")
                k += 1
            yield trace, seconds


def _read_notes(path: Path, steps: int, depth: int) -> dict[str, Any]:
    """Read what an image's PNG text records of its sampling, without decoding the pixels."""
    try:
        with path.open("rb") as file:
            file.seek(-len(PNG_END), 2)
            if file.read() != PNG_END:
                raise ValueError("it is cut off")
            file.seek(0)
            with Image.open(file, formats=["PNG"]) as image:
                notes = {name: json.loads(image.info[name]) for name in (*TRACED, "seconds")}
        layers = torch.tensor([notes["exit_layers"], notes["unconditional_exit_layers"]])
        others = (len(notes["guided"]), len(notes["flops"]))
        if layers.shape != (2, steps) or layers.max() > depth or others != (steps, steps):
            raise ValueError("its trace is of other steps or layers")
    except Exception as error:  # whatever a decoder raises
        raise InputError(
            f"{path} is not an image of this sampling, or damaged ({error}): move it away, and it is sampled again"
        ) from error
    return notes

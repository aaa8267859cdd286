"""Sampling into a folder: in batches, each image written whole with its trace, and continued where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from adadiff.conditioning import class_indices
from adadiff.errors import InputError
from adadiff.exits import ExitPolicy
from adadiff.exits.trace import Trace
from adadiff.files import claim_folder, whole_file
from adadiff.sampling.grid import image_grid
from adadiff.sampling.numbered import UNCONDITIONAL, Conditions, sample_numbered
from adadiff.sampling.pipeline import AdaDiffPipeline

REQUEST = "request.json"
GRID_IMAGES = 64
TRACED = ("exit_layers", "unconditional_exit_layers", "flops")


@dataclass(frozen=True)
class FolderSummary:
    """What a sampling into a folder came to.

    Args:
        trace: Of all the images in the folder.
        sampled: Images that this process sampled now.
        seconds: Time that the sampling of all of them took, now and before, all processes' added.
    """

    trace: Trace
    sampled: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Of one process."""
        return self.trace.exit_layers.shape[1] / self.seconds


def sample_to_folder(
    pipeline: AdaDiffPipeline,
    out: Path,
    n: int,
    steps: int,
    policy: ExitPolicy,
    seed: int = 0,
    conditions: Conditions = UNCONDITIONAL,
    batch_size: int = 64,
) -> FolderSummary:
    """Sample images 0..n-1 into PNG files, with a grid, the trace as JSON and its heat map.

    Image k depends on the seed and k alone (up to rounding), so that batches of any size give the same images, and
    images that are there already are not sampled again. An image's file carries its exit layers, FLOPs and seconds as
    text. Processes that accelerate launched together share the work; the first one writes what belongs to all.

    Args:
        pipeline: The model and the scheduler.
        out: The folder: new, empty, or one begun by the same request.
        n: Number of images.
        steps: Sampling steps.
        policy: When samples leave.
        seed: Of the noise.
        conditions: What the images shall show.
        batch_size: Images sampled at once.

    Raises:
        InputError: If an argument does not fit, or the folder holds something else.
    """
    for name, value in (("number of images", n), ("batch size", batch_size)):
        if value < 1:
            raise InputError(f"the {name} is {value}: it must be at least 1")
    pipeline.check_inputs(1, steps, policy)
    _check_conditions(pipeline, conditions)
    state = PartialState()
    with state.main_process_first():
        claim_folder(out, REQUEST, sampling_request(pipeline, steps, policy, seed, conditions), "images sampled")
        missing = [k for k in range(n) if not image_path(out, k).exists()]
    state.wait_for_everyone()
    mine = missing[state.process_index :: state.num_processes]
    with tqdm(total=len(mine), desc="sampling", unit="image", disable=not state.is_main_process) as progress:
        for first in range(0, len(mine), batch_size):
            numbers = mine[first : first + batch_size]
            _sample_batch(pipeline, out, numbers, steps, policy, seed, conditions)
            progress.update(len(numbers))
    state.wait_for_everyone()

    pipeline.scheduler.set_timesteps(steps)
    images = [read_image(image_path(out, k)) for k in range(n)]
    trace = _assemble_trace(images, pipeline)
    if state.is_main_process:
        trace.save(out / "trace.json", request=json.loads((out / REQUEST).read_text()))
        trace.plot(out / "exits.png")
        with whole_file(out / "grid.png") as part:
            image_grid(images[:GRID_IMAGES]).save(part)
    return FolderSummary(trace, len(mine), sum(json.loads(image.info["seconds"]) for image in images))


def _sample_batch(
    pipeline: AdaDiffPipeline,
    out: Path,
    numbers: Sequence[int],
    steps: int,
    policy: ExitPolicy,
    seed: int,
    conditions: Conditions,
) -> None:
    """Sample the images of these numbers, and write each with its trace and its share of the seconds."""
    start = time.perf_counter()
    output = sample_numbered(pipeline, numbers, steps, policy, seed, conditions)
    pixels = output.images.permute(0, 2, 3, 1).float().cpu()
    seconds = (time.perf_counter() - start) / len(numbers)
    for place, k in enumerate(numbers):
        if not pixels[place].isfinite().all():
            raise InputError(f"image {k} came out as NaN: try --dtype float32, another scheduler or more steps")
        traced = {name: getattr(output.trace, name)[:, place].tolist() for name in TRACED}
        _write_image(
            image_path(out, k), pipeline.numpy_to_pil(pixels[place].numpy())[0], {**traced, "seconds": seconds}
        )


def _check_conditions(pipeline: AdaDiffPipeline, conditions: Conditions) -> None:
    """Raise InputError where the model does not take such conditions."""
    count = len(conditions.classes) or 1
    pipeline.conditions(count, conditions.classes or None, list(conditions.prompts[:1]) * count or None)
    if conditions.guidance.scale > 1:
        pipeline.null_conditions(1, conditions.negative_prompt)


def sampling_request(
    pipeline: AdaDiffPipeline, steps: int, policy: ExitPolicy, seed: int, conditions: Conditions
) -> dict[str, Any]:
    """All that the images depend on."""
    names, classes = pipeline.transformer.config.class_names, conditions.classes
    if names:
        indices = class_indices(classes, pipeline.transformer.backbone.num_classes, names)
        classes = tuple(names[k] if k < len(names) else k for k in indices)
    return {
        "model": pipeline.transformer.identity(),
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": steps,
        "policy": policy.describe(),
        "seed": seed,
        "conditions": {**asdict(conditions), "classes": classes},
        "dtype": str(pipeline.transformer.dtype),
    }


def image_path(out: Path, k: int) -> Path:
    return out / f"{k:06d}.png"


def _write_image(path: Path, image: Image.Image, notes: dict[str, Any]) -> None:
    text = PngInfo()
    for name, value in notes.items():
        text.add_text(name, json.dumps(value))
    with whole_file(path) as part:
        image.save(part, pnginfo=text)


def read_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def _assemble_trace(images: Sequence[Image.Image], pipeline: AdaDiffPipeline) -> Trace:
    traced = {name: torch.tensor([json.loads(image.info[name]) for image in images]).T for name in TRACED}
    model = pipeline.transformer
    unknown = torch.full((*traced["flops"].shape, model.depth), torch.nan)
    return Trace(
        **traced,
        depth=model.depth,
        full_flops=model.part_flops.full,
        timesteps=tuple(pipeline.scheduler.timesteps.tolist()),
        uncertainties=unknown,
        unconditional_uncertainties=unknown,
    )

"""Sampling into a folder: in batches, each image written atomically with its trace; an interrupted run is continued.

No more than a batch is in memory at once: totals are read back from the image files, in chunks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm import tqdm

from adadiff.conditioning import class_indices
from adadiff.policies import ExitPolicy
from adadiff.runtime.trace import TraceTotals
from adadiff.sampling.conditions import UNCONDITIONAL, Conditions
from adadiff.sampling.finite import NonFiniteImagesError
from adadiff.sampling.grid import image_grid
from adadiff.sampling.images import image_path, read_image, read_traces, traced_image, with_lines
from adadiff.sampling.pipeline import AdaptivePipeline
from adadiff.sampling.schedulers import times_of
from adadiff.sampling.seeded import sample_seeded
from adadiff.utils.errors import InputError
from adadiff.utils.files import (
    atomic_write,
    check_claim,
    claim_folder,
    exclusive_folder,
    read_json,
    write_bytes,
    write_json,
)
from adadiff.utils.fingerprints import model_fingerprint, settings_of
from adadiff.utils.processes import process_state

REQUEST = "request.json"
HOLDS = "images sampled"
TRACE = "trace.json"
TRACE_LINES = "trace.jsonl"
GRID_IMAGES = 64
CHUNK = 256  # images whose traces are in memory at once; the heat map shows the first chunk


@dataclass(frozen=True)
class FolderSummary:
    """The totals of sampling into a folder.

    Args:
        totals: Exits and FLOPs of all images in the folder.
        sampled: Number of images that this process sampled in this run.
        seconds: Seconds of sampling all images in the folder, summed over runs and processes.
    """

    totals: TraceTotals
    sampled: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Images per second of one process."""
        return self.totals.images / self.seconds


@dataclass(frozen=True)
class ImageSampler:
    """Samples images by their indices: image k depends only on the seed and k, up to rounding.

    Args:
        pipeline: The model and the scheduler.
        steps: Number of sampling steps.
        policy: The exit policy.
        seed: Seed of the noise.
        conditions: Conditions of the images, and the guidance.
    """

    pipeline: AdaptivePipeline
    steps: int
    policy: ExitPolicy
    seed: int = 0
    conditions: Conditions = UNCONDITIONAL

    def __call__(self, indices: Sequence[int]) -> list[bytes]:
        """Sample a batch; return each image as the content of a PNG file, with its trace and its share of the seconds.

        Raises:
            NonFiniteImagesError: If an image is NaN or infinite.
        """
        start = time.perf_counter()
        try:
            output = sample_seeded(self.pipeline, indices, self.steps, self.policy, self.seed, self.conditions)
        except NonFiniteImagesError as error:
            others = f" (and {len(error.positions) - 1} more of its batch)" if len(error.positions) > 1 else ""
            raise NonFiniteImagesError(
                f"image {indices[error.positions[0]]} is NaN or infinite{others}: try --dtype float32, another "
                f"scheduler or more steps",
                error.positions,
            ) from error
        pixels = output.images.permute(0, 2, 3, 1).float().cpu().numpy()
        seconds = (time.perf_counter() - start) / len(indices)
        images = self.pipeline.numpy_to_pil(pixels)
        return [traced_image(image, output.trace, position, seconds) for position, image in enumerate(images)]


Batch = tuple[Sequence[int], list[bytes]]
"""The indices of images, and each image as the content of a PNG file."""
Spread = Callable[[ImageSampler, Iterator[Sequence[int]]], Iterator[Batch]]
"""Samples batches of indices, and yields them in any order."""


def one_by_one(sampler: ImageSampler, batches: Iterator[Sequence[int]]) -> Iterator[Batch]:
    """Sample batches in this process, one after the other."""
    for indices in batches:
        yield indices, sampler(indices)


def sample_to_folder(
    pipeline: AdaptivePipeline,
    out: Path,
    n: int,
    steps: int,
    policy: ExitPolicy,
    seed: int = 0,
    conditions: Conditions = UNCONDITIONAL,
    batch_size: int = 64,
    spread: Spread = one_by_one,
) -> FolderSummary:
    """Sample images 0..n-1 into PNG files, with a grid, the trace as JSON and its heat map.

    Image k depends only on the seed and k (up to rounding), so that batches of any size give the same images. A batch
    whose images exist already is not sampled again; one of which some are missing is sampled whole, so that an
    interrupted run ends with the same pixels as one that was not. An image's file carries its exit layers, FLOPs and
    seconds as PNG text. Processes that torchrun launched together share the work; the first one writes grid, trace and
    heat map.

    Args:
        pipeline: The model and the scheduler.
        out: A new or empty folder, or one begun with the same request.
        n: Number of images.
        steps: Number of sampling steps.
        policy: The exit policy.
        seed: Seed of the noise.
        conditions: Conditions of the images, and the guidance.
        batch_size: Images per batch.
        spread: Samples the batches; `adadiff.sampling.cluster.OnActors` does it on many machines.

    Raises:
        InputError: If an argument is invalid, the folder holds other files, another process writes to it, or an image
            is NaN or infinite; no image of such a batch is written.
    """
    for name, value in (("number of images", n), ("batch size", batch_size)):
        if value < 1:
            raise InputError(f"the {name} is {value}: it must be at least 1")
    pipeline.check_inputs(1, steps, policy, conditions.guidance)
    _check_conditions(pipeline, conditions)
    state = process_state()
    sampler = ImageSampler(pipeline, steps, policy, seed, conditions)
    request = sampling_request(pipeline, steps, policy, seed, conditions)
    if state.is_main_process:
        check_claim(out, REQUEST, request, HOLDS)
    with exclusive_folder(out) if state.is_main_process else nullcontext():
        if state.is_main_process:
            claim_folder(out, REQUEST, request, HOLDS)
        state.wait_for_everyone()
        mine = range(state.process_index, n, state.num_processes)
        to_sample = sum(_is_missing(out, k) for k in mine)
        with tqdm(total=to_sample, desc="sampling", unit="image", disable=not state.is_main_process) as progress:
            for indices, images in spread(sampler, _unfinished(out, mine, batch_size)):
                progress.update(_write_missing(out, indices, images))
        state.wait_for_everyone()
        totals, seconds = _summarise(pipeline, out, n, steps, state)
    return FolderSummary(totals, to_sample, seconds)


def _unfinished(out: Path, indices: range, batch_size: int) -> Iterator[Sequence[int]]:
    """Yield the batches with an image that is missing."""
    for first in range(0, len(indices), batch_size):
        batch = indices[first : first + batch_size]
        if any(_is_missing(out, k) for k in batch):
            yield batch


def _is_missing(out: Path, k: int) -> bool:
    return not image_path(out, k).exists()


def _write_missing(out: Path, indices: Sequence[int], images: Sequence[bytes]) -> int:
    """Write the images that have no file yet, each atomically, and return their number."""
    missing = [(k, content) for k, content in zip(indices, images, strict=True) if _is_missing(out, k)]
    for k, content in missing:
        write_bytes(image_path(out, k), content)
    return len(missing)


def _summarise(
    pipeline: AdaptivePipeline, out: Path, n: int, steps: int, state: PartialState
) -> tuple[TraceTotals, float]:
    """Sum the exits and seconds of all images; in the first process, write trace, heat map and grid."""
    model = pipeline.transformer
    timesteps = times_of(pipeline.scheduler, steps)
    traces = read_traces(out, n, model.depth, model.part_flops.full, timesteps, CHUNK)
    totals, seconds = None, 0.0
    for trace, chunk_seconds in with_lines(traces, out / TRACE_LINES) if state.is_main_process else traces:
        if totals is None and state.is_main_process:
            trace.plot(out / "exits.png")
        totals = TraceTotals.of(trace) if totals is None else totals + TraceTotals.of(trace)
        seconds += chunk_seconds
    assert totals is not None
    if state.is_main_process:
        write_json(out / TRACE, {"request": read_json(out / REQUEST), **totals.to_dict()})
        with atomic_write(out / "grid.png") as part:
            image_grid([read_image(image_path(out, k)) for k in range(min(n, GRID_IMAGES))]).save(part)
    return totals, seconds


def _check_conditions(pipeline: AdaptivePipeline, conditions: Conditions) -> None:
    """Raise InputError if the model does not take these conditions."""
    count = len(conditions.classes) or 1
    pipeline.conditions(count, conditions.classes or None, list(conditions.prompts[:1]) * count or None)
    if conditions.guidance.scale > 1:
        pipeline.null_conditions(1, conditions.negative_prompt)


def sampling_request(
    pipeline: AdaptivePipeline, steps: int, policy: ExitPolicy, seed: int, conditions: Conditions
) -> dict[str, Any]:
    """Describe, as plain values, everything that images depend on: each part's weights and settings, the arguments."""
    names, classes = pipeline.transformer.config.class_names, conditions.classes
    if (count := pipeline.transformer.backbone.num_classes) is not None:
        indices = class_indices(classes, count, names, pipeline.transformer.config.null_class)
        classes = tuple(names[k] if names else k for k in indices)
    return {
        **describe_pipeline(pipeline),
        "steps": steps,
        "policy": policy.describe(),
        "seed": seed,
        "conditions": {**asdict(conditions), "classes": classes},
    }


def describe_pipeline(pipeline: AdaptivePipeline) -> dict[str, Any]:
    """Describe, as plain values, each part of a pipeline that images depend on: weights, settings, precision."""
    return {
        "model": pipeline.denoiser.identity(),
        "text_encoder": None if pipeline.text_encoder is None else pipeline.text_encoder.identity(),
        "vae": None if pipeline.vae is None else {"fingerprint": model_fingerprint(pipeline.vae)},
        "scheduler": type(pipeline.scheduler).__name__,
        "scheduler_config": settings_of(pipeline.scheduler),
        "dtype": str(pipeline.transformer.dtype),
    }

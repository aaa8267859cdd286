"""Sampling numbered samples with a stock pipeline: sample k depends on the seed and k alone, not on its batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adadiff.sampling.finite import require_finite_images
from adadiff.utils.errors import InputError

OWN_ARGUMENTS = ("generator", "latents", "num_images_per_prompt", "num_videos_per_prompt", "output_type", "return_dict")


@dataclass(frozen=True)
class StockSampler:
    """Calls a stock pipeline for numbered samples.

    Args:
        pipe: A diffusers pipeline.
        prompts: What each sample is conditioned on, given in turn: values of the pipeline's argument `prompt` (of its
            first argument, such as `class_labels`, if it has no `prompt`), or dictionaries of several arguments.
            Tensors, such as the embedding of a prompt, are stacked.
        seed: Seed of the noise: sample k is drawn with a generator seeded with `seed + k`.
        arguments: The other arguments of every call, such as `num_inference_steps`.

    Raises:
        InputError: If there are no prompts, or an argument is one that the sampler sets itself, or the pipeline lacks
            it.
    """

    pipe: Any
    prompts: Sequence[Any]
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.prompts, (str, Mapping)) or not len(self.prompts):
            raise InputError("give a list of prompts, at least one")
        parameters = inspect.signature(type(self.pipe).__call__).parameters
        for name in self.arguments:
            if name in OWN_ARGUMENTS:
                raise InputError(f"{name} cannot be given: each sample has its own noise, and one image")
            if name not in parameters:
                raise InputError(f"{type(self.pipe).__name__} takes no argument {name}")

    def __call__(self, numbers: Sequence[int], output_type: str = "latent") -> Tensor:
        """Sample one batch.

        Args:
            numbers: The numbers of the samples.
            output_type: `latent` for what the scheduler's last step returns, undecoded; `pt` for images in [0, 1].
                `DiTPipeline` decodes in either case.

        Returns:
            The samples, (len(numbers), ...) float32 on the CPU; those of images or videos end in (channels, height,
            width).

        Raises:
            NonFiniteImagesError: If a sample is NaN or infinite.
        """
        device = torch.device("cpu")  # so that the noise is the same on all devices
        generators = [torch.Generator(device).manual_seed(self.seed + k) for k in numbers]
        with _no_progress_bar(self.pipe):
            output = self.pipe(
                **self._conditions(numbers), **self.arguments, generator=generators, output_type=output_type
            )
        samples = output[0] if isinstance(output, tuple) else next(iter(output.values()))
        if isinstance(samples, list):
            samples = torch.stack([torch.as_tensor(np.asarray(each)) for each in samples])
        channels_last = isinstance(samples, np.ndarray) and samples.ndim > 3  # as `DiTPipeline` returns for any type
        samples = torch.as_tensor(samples).float().cpu()
        if channels_last:
            samples = samples.movedim(-1, -3)
        require_finite_images(samples, getattr(self.pipe, "transformer", self.pipe).dtype)
        return samples

    def _conditions(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of the samples: lists with one value for each, or tensors with one row for each."""
        parameters = list(inspect.signature(type(self.pipe).__call__).parameters)
        name = "prompt" if "prompt" in parameters else parameters[1]
        chosen = [self.prompts[k % len(self.prompts)] for k in numbers]
        rows = [dict(each) if isinstance(each, Mapping) else {name: each} for each in chosen]
        return {name: _together([row[name] for row in rows]) for name in rows[0]}


def _together(values: list[Any]) -> Any:
    """Stack tensors of one shape, such as the embeddings of prompts; return other values as they are."""
    if isinstance(values[0], Tensor) and len({each.shape for each in values}) == 1:
        return torch.stack(values)
    return values


@contextmanager
def _no_progress_bar(pipe: Any) -> Iterator[None]:
    """Hide the progress bar of the pipeline's steps."""
    shown = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**shown, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**shown)

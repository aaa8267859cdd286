"""Sampling numbered samples with a stock pipeline: sample k depends on the seed and k alone, not on its batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adadiff.sampling.finite import require_finite_images
from adadiff.stock.stored import call_defaults
from adadiff.utils.errors import InputError
from adadiff.utils.ranges import as_int

OWN_ARGUMENTS = ("generator", "latents", "num_images_per_prompt", "num_videos_per_prompt", "output_type", "return_dict")


@dataclass(frozen=True)
class StockSampler:
    """Calls a stock pipeline for numbered samples.

    Args:
        pipe: A diffusers pipeline.
        prompts: What each sample is conditioned on, given in turn: values of the pipeline's argument `prompt` (of its
            first argument, such as `class_labels`, if it has no `prompt`), or dictionaries of several arguments.
            Tensors, such as the embedding of a prompt, are stacked; lists are joined.
        seed: Seed of the noise: sample k is drawn with a generator seeded with `seed + k`.
        arguments: The other arguments of every call, such as `num_inference_steps`.

    Raises:
        InputError: If there are no prompts, or those of several arguments do not name the same ones, or an argument is
            given twice or set by the sampler itself, or the pipeline lacks it.
    """

    pipe: Any
    prompts: Sequence[Any]
    seed: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", as_int(self.seed, "the seed"))
        if isinstance(self.prompts, (str, Mapping)) or not hasattr(self.prompts, "__len__") or not len(self.prompts):
            raise InputError("give a list of prompts, at least one")
        conditions = [*self._named(self.prompts[0])]
        if any({*self._named(each)} != {*conditions} for each in self.prompts):
            raise InputError(
                f"prompts are to name the same arguments each: the first ones name {', '.join(conditions)}"
            )
        for name in (*conditions, *self.arguments):
            if name in OWN_ARGUMENTS:
                raise InputError(f"{name} cannot be given: each sample has its own noise, and one image")
            if name not in self._parameters:
                raise InputError(f"{type(self.pipe).__name__} takes no argument {name}")
        if twice := sorted({*conditions} & {*self.arguments}):
            raise InputError(f"{twice[0]} is given twice: by the prompts, and as an argument of all calls")

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
        rows = [self._named(self.prompts[k % len(self.prompts)]) for k in numbers]
        return {name: _together([row[name] for row in rows]) for name in rows[0]}

    def _named(self, prompt: Any) -> dict[str, Any]:
        """Return the arguments that a prompt stands for, by name."""
        name = "prompt" if "prompt" in self._parameters else self._parameters[1]
        return dict(prompt) if isinstance(prompt, Mapping) else {name: prompt}

    @property
    def _parameters(self) -> list[str]:
        return list(call_defaults(self.pipe))


def _together(values: list[Any]) -> Any:
    """Stack tensors of one shape, such as the embeddings of prompts; join lists; return other values as they are."""
    if isinstance(values[0], Tensor) and len({each.shape for each in values}) == 1:
        return torch.stack(values)
    return list(chain.from_iterable(values)) if isinstance(values[0], list) else values


@contextmanager
def _no_progress_bar(pipe: Any) -> Iterator[None]:
    """Hide the progress bar of the pipeline's steps."""
    shown = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**shown, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**shown)

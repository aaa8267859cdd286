"""Measurements of plans: their images' features by several networks, sampled once and kept, and the metrics of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adadiff.calibration.cache import TensorCache, Tensors
from adadiff.evaluation.evaluator import Evaluator, class_agreement
from adadiff.evaluation.features import BATCH
from adadiff.evaluation.metrics import bootstrap
from adadiff.sampling import SamplingPlan
from adadiff.sampling.images import decoded_images, pixels_of
from adadiff.tuning.tunable import Tunable
from adadiff.utils.errors import InputError
from adadiff.utils.fingerprints import fingerprint, model_fingerprint

CHUNK = 250  # images whose features are stored together; those of an incomplete chunk are lost by an interruption


@dataclass(frozen=True)
class Measurement:
    """What the images of a plan are like.

    Args:
        images: Number of images.
        flops: FLOPs of an image, as counted while sampling.
        distances: Fréchet distance by each network's name.
        errors: Their standard errors by bootstrap over the images; empty if they were not asked for.
        shares: Class agreement, precision and recall in [0, 1] and CLIP score in [0, 100], as far as they were asked
            for and exist, by name.
    """

    images: int
    flops: float
    distances: Mapping[str, float]
    errors: Mapping[str, float]
    shares: Mapping[str, float]

    def relative(self, names: Sequence[str], reference: Measurement) -> float:
        """Return the mean over some networks of the distance over that of a reference: 1 is as good as that."""
        return float(np.mean([self.distances[name] / reference.distances[name] for name in names]))

    def relative_error(self, names: Sequence[str], reference: Measurement) -> float:
        """Return the standard error of `relative`, taking the networks' errors and the reference's as independent."""
        ratios = [self.distances[name] / reference.distances[name] for name in names]
        parts = [
            ratio * each.errors[name] / each.distances[name]
            for name, ratio in zip(names, ratios, strict=True)
            for each in (self, reference)
        ]
        return math.hypot(*parts) / len(names)


class Measurer:
    """Samples with plans, and measures the images.

    Image k depends only on the seed and on k, so that all plans share their noise. Features are stored as soon as a
    chunk of images is complete, and never computed twice.

    Args:
        model: The model.
        evaluator: The feature networks; agreement, precision and recall go by the first. With the scorer of prompts.
        cache: Cache for the features.
        batch_size: Images per batch.
        progress: Called, once for each chunk, with the FLOPs of its images, and whether they were sampled now.
    """

    def __init__(
        self,
        model: Tunable,
        evaluator: Evaluator,
        cache: TensorCache,
        batch_size: int = 50,
        progress: Callable[[int, bool], None] = lambda flops, sampled: None,
    ) -> None:
        self.model, self.evaluator = model, evaluator
        self.cache, self.batch_size, self.progress = cache, batch_size, progress
        self._counted: set[str] = set()

    def describe(self, seed: int) -> dict[str, Any]:
        """Describe, as plain values, what measurements depend on besides the plan and the number of images.

        Args:
            seed: Seed of the noise.
        """
        references = self.evaluator.references
        return {
            "model": self.model.describe(seed),
            "default": self.model.default.describe(),
            "networks": {name: each.network.fingerprint for name, each in references.items()},
            "real_images": {name: fingerprint([each.real.vectors.tobytes()]) for name, each in references.items()},
        } | ({} if self.evaluator.clip is None else {"clip": model_fingerprint(self.evaluator.clip.model)})

    def measure(
        self, plan: SamplingPlan, images: int, seed: int, shares: Sequence[str] = (), errors: bool = False
    ) -> Measurement:
        """Measure images 0, 1, ... of a plan.

        Args:
            plan: The plan.
            images: Number of images.
            seed: Seed of their noise.
            shares: Other metrics to compute: agreement, precision, recall, clip_score.
            errors: Whether to compute standard errors.

        Raises:
            NonFiniteImagesError: If an image is NaN or infinite.
        """
        tensors, references = self._features(plan, images, seed), self.evaluator.references
        vectors = {name: tensors[f"{name}/vectors"].numpy() for name in references}
        return Measurement(
            images,
            tensors["flops"].double().sum().item() / images,
            {name: each.distance(vectors[name]) for name, each in references.items()},
            {name: bootstrap(each.distance, vectors[name]) for name, each in references.items() if errors},
            self._shares(tensors, shares),
        )

    def _shares(self, tensors: Tensors, wanted: Sequence[str]) -> dict[str, float]:
        first = self.evaluator.first
        name = first.network.name
        found: dict[str, float | None] = {}
        if "agreement" in wanted:
            guesses = tensors.get(f"{name}/guesses")
            found["agreement"] = class_agreement(
                None if guesses is None else guesses.numpy(), first.network.class_names, self.model.classes
            )
        if "precision" in wanted or "recall" in wanted:
            pair = first.precision_recall(tensors[f"{name}/vectors"].numpy())
            found |= dict(zip(("precision", "recall"), pair, strict=True))
        if "clip_score" in wanted and "clip" in tensors:
            found["clip_score"] = tensors["clip"].mean().item()
        return {each: value for each, value in found.items() if each in wanted and value is not None}

    def require(self, shares: Sequence[str]) -> None:
        """Raise InputError if one of these metrics cannot be computed."""
        first = self.evaluator.first
        if "agreement" in shares:
            known = class_agreement(np.zeros(1, np.int64), first.network.class_names, self.model.classes)
            if known is None:
                raise InputError(
                    f"the features {first.network.name} do not know the model's classes: set no floor of class "
                    f"agreement, or name first among the features a network that knows them"
                )
        if "clip_score" in shares and (self.evaluator.clip is None or not self.model.prompts):
            raise InputError("a floor of the CLIP score needs prompts and a CLIP model: set --prompts and --clip")

    def _features(self, plan: SamplingPlan, images: int, seed: int) -> Tensors:
        chunks = [range(first, min(first + CHUNK, images)) for first in range(0, images, CHUNK)]
        names = {numbers: f"{plan.describe()}, seed {seed}, images {numbers}" for numbers in chunks}
        found = {numbers: tensors for numbers in chunks if (tensors := self.cache.find(names[numbers])) is not None}
        for numbers, tensors in found.items():
            self._count(names[numbers], tensors, sampled=False)
        for numbers, contents in self._sampled(plan, [each for each in chunks if each not in found], seed):
            found[numbers] = self.cache.add(names[numbers], self._features_of(numbers, contents))
            self._count(names[numbers], found[numbers], sampled=True)
        return {name: torch.cat([found[numbers][name] for numbers in chunks]) for name in found[chunks[0]]}

    def _count(self, name: str, tensors: Tensors, sampled: bool) -> None:
        if name not in self._counted:
            self._counted.add(name)
            self.progress(int(tensors["flops"].sum()), sampled)

    def _sampled(
        self, plan: SamplingPlan, chunks: Sequence[range], seed: int
    ) -> Iterator[tuple[range, Sequence[bytes]]]:
        """Sample chunks of images, and yield each once it is complete, its images as the content of PNG files."""
        if not chunks:
            return
        size = self.batch_size
        batches = (numbers[first : first + size] for numbers in chunks for first in range(0, len(numbers), size))
        incomplete: dict[range, dict[int, bytes]] = {numbers: {} for numbers in chunks}
        for indices, contents in self.model.sampled(plan, seed, batches):
            numbers = next(each for each in incomplete if indices[0] in each)
            incomplete[numbers].update(zip(indices, contents, strict=True))
            if len(incomplete[numbers]) == len(numbers):
                images = incomplete.pop(numbers)
                yield numbers, [images[k] for k in numbers]

    def _features_of(self, numbers: Sequence[int], contents: Sequence[bytes]) -> Tensors:
        images, flops = decoded_images(contents)
        pixels = pixels_of(images).contiguous()  # else the networks round otherwise
        tensors: Tensors = {"flops": torch.tensor([flops])}
        for name, features in self.evaluator.features(pixels.split(BATCH)).items():
            tensors[f"{name}/vectors"] = torch.from_numpy(features.vectors)
            if features.guesses is not None:
                tensors[f"{name}/guesses"] = torch.from_numpy(features.guesses)
        if (clip := self.evaluator.clip) is not None:
            prompts = self.model.prompts
            tensors["clip"] = clip.score(images, [prompts[k % len(prompts)] for k in numbers])
        return tensors

"""Evaluation of a folder of samples: all metrics, in one JSON file and one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPModel, CLIPProcessor

from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.features import BATCH, FeatureNetwork, ImageFeatures, load_feature_network, reference_features
from adadiff.evaluation.metrics import (
    NEIGHBOURS,
    Features,
    Gaussian,
    bootstrap,
    kernel_distance,
    precision_recall,
)
from adadiff.sampling import AdaptivePipeline
from adadiff.sampling.folder import REQUEST, FolderSummary
from adadiff.sampling.images import image_path, read_image
from adadiff.utils.errors import InputError
from adadiff.utils.files import read_json, write_json
from adadiff.utils.text import with_error
from adadiff.utils.verified import require_finite, require_fitting

METRICS = "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """The quality of samples and the cost of making them.

    Args:
        images: Number of samples evaluated.
        features: Name of the feature network.
        frechet: Fréchet distance to the real images.
        frechet_error: Standard error of the Fréchet distance, by bootstrap over the samples.
        kernel: Kernel distance (KID) to the real images, unbiased.
        precision: Share of samples that lie on the manifold of real images, in [0, 1].
        recall: Share of real images that lie on the manifold of samples, in [0, 1].
        class_agreement: Share of samples that the network assigns to their requested class, in [0, 1]; None if no
            classes were requested, or the network does not know them.
        clip_score: Mean over samples of 100 max(cos(image, text), 0) by a CLIP model; None without a CLIP model.
        layer_fraction: Layers run over the full model's, in (0, 1].
        compute_fraction: FLOPs spent over the full model's, heads and estimators included.
        images_per_second: Sampling speed of one process.
        constant_images: Indices of the samples that have a single colour, as a diverging sampler makes them.
    """

    images: int
    features: str
    frechet: float
    frechet_error: float
    kernel: float
    precision: float
    recall: float
    class_agreement: float | None
    clip_score: float | None
    layer_fraction: float
    compute_fraction: float
    images_per_second: float
    constant_images: tuple[int, ...]


@dataclass(frozen=True)
class ClipScorer:
    """Scores how well images match texts, with a CLIP model and its processor."""

    model: CLIPModel
    processor: CLIPProcessor

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Compute 100 max(cos(image, text), 0) of each pair, (pairs,).

        This is CLIPScore (Hessel et al. 2021, arXiv 2104.08718) with w = 1, in percent.
        """
        inputs = self.processor(
            text=list(texts),
            images=[image.convert("RGB") for image in images],
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        output = self.model(**inputs)
        return 100 * (output.image_embeds * output.text_embeds).sum(1).clamp(min=0)


def load_clip(name: str) -> ClipScorer:
    """Load a CLIP model of transformers from a folder or by its name on the hub; only safetensors files are read.

    Raises:
        InputError: If the model does not exist, cannot be fetched, or has damaged weights.
    """
    try:
        loaded: Any = CLIPModel.from_pretrained(name, use_safetensors=True, output_loading_info=True)
        model, info = loaded
        processor = CLIPProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{name} is neither a folder with a CLIP model, nor the name of one that can be fetched from the hub: "
            f"check the name and the network connection"
        ) from error
    require_fitting(info, name)
    require_finite(model, name)
    return ClipScorer(model.eval(), processor)


@dataclass(frozen=True)
class Judge:
    """The reference that samples are evaluated against: real images and the networks that compare them.

    Args:
        network: The feature network.
        real: The real images.
        reference: Features of the real images.
        clip: CLIP scorer for samples with prompts, or None.
    """

    network: FeatureNetwork
    real: ImageData
    reference: ImageFeatures
    clip: ClipScorer | None = None

    @property
    def least_images(self) -> int:
        """Least number of images that the metrics need, of real ones and of samples."""
        return max(self.reference.vectors.shape[1], NEIGHBOURS) + 1

    def require_enough(self, n: int) -> None:
        """Raise InputError if n samples are too few for metrics on these features."""
        if n < self.least_images:
            raise InputError(
                f"{n} images are too few for metrics on the features {self.network.name}: at least "
                f"{self.least_images} are needed"
            )


def judge_for(model: str | Path, data: DataConfig, features: str, clip: str | None, device: torch.device) -> Judge:
    """Build the judge of a model's samples, with features of real images in the model's size.

    Args:
        model: Model folder, or the name of a packaged model.
        data: Real images; resized to the model's size and converted to its channels.
        features: Name of the feature network.
        clip: Name of a CLIP model, for a model that takes text.
        device: Device that the networks run on.

    Raises:
        InputError: If the model, the data or a network is missing; or the real images are smaller than the model's,
            grey although the model's have colours, or too few for the metrics.
    """
    pipeline = AdaptivePipeline.from_pretrained(model, own_settings=False)
    channels, height, width = pipeline.image_shape
    if height != width or channels not in (1, 3):
        raise InputError(
            f"the model's images are {channels}x{height}x{width}: only square grey or RGB images can be evaluated"
        )
    if clip is not None and pipeline.text_encoder is None:
        raise InputError("a CLIP score needs prompts, and the model takes none: leave --clip out")
    real = ImageData(
        replace(data, size=height, channels=1 if channels == 1 else 3), smallest_side=height, condition="none"
    )
    if channels == 3 and real.is_grey():
        raise InputError(f"the images of {data.source} are grey, but the model's are RGB: set another --data.source")
    network = load_feature_network(features, device)
    scorer = None if clip is None else load_clip(clip)
    judge = Judge(network, real, reference_features(network, real), scorer)
    if len(real) < judge.least_images:
        raise InputError(
            f"{len(real)} real images are too few for metrics on the features {network.name}: at least "
            f"{judge.least_images} are needed"
        )
    return judge


def evaluate_folder(folder: Path, summary: FolderSummary, judge: Judge) -> Evaluation:
    """Evaluate the samples in a folder and write `metrics.json` into it.

    Args:
        folder: A folder that `sample_to_folder` filled.
        summary: The summary that `sample_to_folder` returned.
        judge: The real images and networks to evaluate with.

    Raises:
        InputError: If there are too few samples.
    """
    n = summary.totals.images
    judge.require_enough(n)
    request = read_json(folder / REQUEST)
    conditions, network, reference = request["conditions"], judge.network, judge.reference
    constant: list[int] = []
    samples = network.of(_batches(folder, n, constant))
    chosen = np.random.default_rng(0).permutation(len(reference.vectors))[:n]
    precision, recall = precision_recall(samples.vectors, reference.vectors[chosen])
    real = Gaussian.fit(reference.vectors)

    def frechet(vectors: Features) -> float:
        return Gaussian.fit(vectors).distance(real)

    evaluation = Evaluation(
        images=n,
        features=network.name,
        frechet=frechet(samples.vectors),
        frechet_error=bootstrap(frechet, samples.vectors),
        kernel=kernel_distance(samples.vectors, reference.vectors[chosen]),
        precision=precision,
        recall=recall,
        class_agreement=class_agreement(samples.guesses, network.class_names, conditions["classes"]),
        clip_score=None if judge.clip is None else _clip_score(judge.clip, folder, n, conditions["prompts"]),
        layer_fraction=summary.totals.layer_fraction,
        compute_fraction=summary.totals.compute_fraction,
        images_per_second=summary.images_per_second,
        constant_images=tuple(constant),
    )
    write_json(folder / METRICS, {**asdict(evaluation), "request": request})
    return evaluation


def evaluation_table(evaluation: Evaluation) -> Table:
    """Build a table of the metrics for display."""
    table = Table("", "", title=f"{evaluation.images} images, features: {evaluation.features}", show_header=False)
    table.add_row("Fréchet distance", with_error(evaluation.frechet, evaluation.frechet_error))
    table.add_row("kernel distance", f"{evaluation.kernel:.5f}")
    table.add_row("precision, recall", f"{evaluation.precision:.3f}, {evaluation.recall:.3f}")
    if evaluation.class_agreement is not None:
        table.add_row("class agreement", f"{evaluation.class_agreement:.1%}")
    if evaluation.clip_score is not None:
        table.add_row("CLIP score", f"{evaluation.clip_score:.2f}")
    table.add_row("layers, compute", f"{evaluation.layer_fraction:.1%}, {evaluation.compute_fraction:.1%}")
    table.add_row("images/s", f"{evaluation.images_per_second:.2f}")
    if evaluation.constant_images:
        named = ", ".join(f"{k:06d}" for k in evaluation.constant_images[:5])
        more = "" if len(evaluation.constant_images) <= 5 else ", ..."
        table.add_row("single-coloured", f"{len(evaluation.constant_images)} images: {named}{more}")
    return table


def _batches(folder: Path, n: int, constant: list[int]) -> Iterator[Tensor]:
    """Yield batches of samples in [0, 1]; append the indices of single-coloured samples to `constant`."""
    for first in tqdm(range(0, n, BATCH), desc="features of samples"):
        indices = range(first, min(first + BATCH, n))
        pixels = np.stack([np.array(read_image(image_path(folder, k))) for k in indices])
        # (batch, channels, height, width); grey images have no channel axis on disk
        images = torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1)).permute(0, 3, 1, 2) / 255
        alike = (images == images[:, :, :1, :1]).flatten(1).all(1)
        constant.extend(k for k, same in zip(indices, alike, strict=True) if same)
        yield images


def class_agreement(
    guesses: NDArray[np.int64] | None, class_names: Sequence[str], requested: Sequence[str | int]
) -> float | None:
    """Return the share of images whose predicted class is the requested one; None if the network lacks these classes.

    Args:
        guesses: Positions in `class_names` of the predicted classes, (images,), or None.
        class_names: Names of the network's classes.
        requested: Names of the requested classes; for image k it was the one at position k modulo their number.
    """
    if guesses is None or not requested or not set(requested) <= set(class_names):
        return None
    wanted = np.array([list(class_names).index(str(name)) for name in requested])
    return float((guesses == wanted[np.arange(len(guesses)) % len(wanted)]).mean())


def _clip_score(clip: ClipScorer, folder: Path, n: int, prompts: Sequence[str]) -> float:
    scores = []
    for first in range(0, n, BATCH):
        indices = range(first, min(first + BATCH, n))
        images = [read_image(image_path(folder, k)) for k in indices]
        scores.append(clip.score(images, [prompts[k % len(prompts)] for k in indices]))
    return torch.cat(scores).mean().item()

"""Evaluation of a folder of samples: all metrics, in one JSON file and one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from adadiff.evaluation.clip import ClipScorer
from adadiff.evaluation.evaluator import SATURATION, Evaluator, NetworkMetrics
from adadiff.evaluation.features import BATCH
from adadiff.sampling.folder import REQUEST, FolderSummary
from adadiff.sampling.images import image_path, pixels_of, read_image
from adadiff.utils.files import read_json, write_json
from adadiff.utils.text import with_error

METRICS = "metrics.json"


@dataclass(frozen=True)
class Evaluation:
    """The quality of samples and the cost of making them.

    Args:
        images: Number of samples evaluated.
        networks: Metrics by the name of each feature network.
        saturation: Mean of HSV saturation over the samples, in [0, 1].
        real_saturation: Mean of HSV saturation over the real images, in [0, 1].
        clip_score: Mean over samples of 100 max(cos(image, text), 0) by a CLIP model; None without a CLIP model.
        layer_fraction: Layers run over the full model's, in (0, 1].
        compute_fraction: FLOPs spent over the full model's, heads and estimators included.
        images_per_second: Sampling speed of one process.
        constant_images: Indices of the samples that have a single colour, as a diverging sampler makes them.
    """

    images: int
    networks: Mapping[str, NetworkMetrics]
    saturation: float
    real_saturation: float
    clip_score: float | None
    layer_fraction: float
    compute_fraction: float
    images_per_second: float
    constant_images: tuple[int, ...]

    @property
    def first(self) -> NetworkMetrics:
        """Metrics by the first network."""
        return next(iter(self.networks.values()))


def evaluate_folder(folder: Path, summary: FolderSummary, evaluator: Evaluator) -> Evaluation:
    """Evaluate the samples in a folder and write `metrics.json` into it.

    Args:
        folder: A folder that `sample_to_folder` filled.
        summary: The summary that `sample_to_folder` returned.
        evaluator: The real images and networks to evaluate with.

    Raises:
        InputError: If there are too few samples.
    """
    n = summary.totals.images
    evaluator.require_enough(n)
    request = read_json(folder / REQUEST)
    conditions = request["conditions"]
    constant: list[int] = []
    samples = evaluator.features(_batches(folder, n, constant))
    evaluation = Evaluation(
        images=n,
        networks=evaluator.metrics(samples, conditions["classes"]),
        saturation=float(samples[SATURATION.name].vectors.mean()),
        real_saturation=evaluator.real_saturation,
        clip_score=None if evaluator.clip is None else _clip_score(evaluator.clip, folder, n, conditions["prompts"]),
        layer_fraction=summary.totals.layer_fraction,
        compute_fraction=summary.totals.compute_fraction,
        images_per_second=summary.images_per_second,
        constant_images=tuple(constant),
    )
    write_json(folder / METRICS, {**asdict(evaluation), "request": request})
    return evaluation


def evaluation_table(evaluation: Evaluation) -> Table:
    """Build a table of the metrics for display: a column for each network, then what no network is asked for."""
    networks = evaluation.networks
    table = Table("", *networks, title=f"{evaluation.images} images, by feature network")
    table.add_row("Fréchet distance", *(with_error(each.frechet, each.frechet_error) for each in networks.values()))
    table.add_row("kernel distance", *(f"{each.kernel:.5f}" for each in networks.values()))
    table.add_row("precision, recall", *(f"{each.precision:.3f}, {each.recall:.3f}" for each in networks.values()))
    agreements = [each.class_agreement for each in networks.values()]
    if any(share is not None for share in agreements):
        table.add_row("class agreement", *("" if share is None else f"{share:.1%}" for share in agreements))
    table.add_section()
    if evaluation.real_saturation > 0:
        table.add_row("saturation", f"{evaluation.saturation:.3f} (real: {evaluation.real_saturation:.3f})")
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
        images = pixels_of([read_image(image_path(folder, k)) for k in indices])
        alike = (images == images[:, :, :1, :1]).flatten(1).all(1)
        constant.extend(k for k, same in zip(indices, alike, strict=True) if same)
        yield images


def _clip_score(clip: ClipScorer, folder: Path, n: int, prompts: Sequence[str]) -> float:
    scores = []
    for first in range(0, n, BATCH):
        indices = range(first, min(first + BATCH, n))
        images = [read_image(image_path(folder, k)) for k in indices]
        scores.append(clip.score(images, [prompts[k % len(prompts)] for k in indices]))
    return torch.cat(scores).mean().item()

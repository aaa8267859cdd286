"""Digits: Fréchet distance against layers run, full and adaptive, from the same noise.

Features: the 32 hidden units of scikit-learn's MLPClassifier trained on the training digits. The reference is the test
split, which neither the generator nor the classifier has seen. Results are printed, not asserted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.neural_network import MLPClassifier
from tqdm import tqdm

from adadiff import AdaDiffPipeline, ExitPolicy, FixedExit, NeverExit, ThresholdExit
from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.metrics import frechet_distance
from adadiff.sampling import sample_seeded
from adadiff.utils.files import PRETRAINED


def load_split(split: str) -> tuple[NDArray[np.floating], NDArray[np.integer]]:
    """Load images in [0, 1] as rows, (images, pixels), and their labels, (images,)."""
    data = ImageData(DataConfig(size=8, channels=1, split=split))
    items = [data[k] for k in range(len(data))]
    images = torch.stack([item["image"] for item in items]).flatten(1)
    return (images.numpy() + 1) / 2, np.array([item["label"] for item in items])


def hidden_features(classifier: MLPClassifier, rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Compute the classifier's hidden units after their ReLU, (images, units)."""
    return np.maximum(rows @ classifier.coefs_[0] + classifier.intercepts_[0], 0)


def sample_rows(
    pipeline: AdaDiffPipeline, policy: ExitPolicy, n: int, steps: int
) -> tuple[NDArray[np.floating], float]:
    """Sample n images as rows, (n, pixels), and return them with the layer fraction; all policies get equal noise."""
    rows, fractions = [], []
    for first in range(0, n, 500):
        numbers = range(first, min(first + 500, n))
        output = sample_seeded(pipeline, numbers, steps, policy, seed=1)
        rows.append(output.images.flatten(1).numpy())
        fractions.append(output.trace.layer_fraction * len(numbers))
    return np.concatenate(rows), sum(fractions) / n


def leave_at_last(tau: float, first: int, last: int, depth: int) -> ThresholdExit:
    """Return a policy with threshold tau from layer `first` on, where all remaining samples exit after layer `last`."""
    return ThresholdExit((0.0,) * (first - 1) + (tau,) * (last - first) + (1.0,) * (depth - last + 1), per="layer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=PRETRAINED / "digits")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--scheduler", default="ddim")
    parser.add_argument("--taus", type=float, nargs="*", default=[0.05, 0.1, 0.15, 0.2])
    parser.add_argument("--fixed-layers", type=int, nargs="*", default=[3, 4, 5])
    parser.add_argument("--min-layer", type=int, default=1)
    parser.add_argument("--last-layers", type=int, nargs="*", default=[], help="with each tau, all leave here at last")
    options = parser.parse_args()

    train_rows, train_labels = load_split("train")
    test_rows, test_labels = load_split("test")
    classifier = MLPClassifier((32,), max_iter=1000, random_state=0).fit(train_rows, train_labels)
    reference = hidden_features(classifier, test_rows)
    pipeline = AdaDiffPipeline.from_pretrained(options.model, own_settings=False, scheduler=options.scheduler)

    console = Console(width=110)
    console.print(f"classifier: {classifier.score(test_rows, test_labels):.1%} of the test split right")
    table = Table("policy", "layers", "Fréchet distance", title=f"digits, {options.n} images, {options.steps} steps")
    real = frechet_distance(hidden_features(classifier, train_rows), reference)
    table.add_row("the training images themselves", "", f"{real:.3f}")
    depth = pipeline.transformer.depth
    policies: list[ExitPolicy] = [
        NeverExit(),
        *(ThresholdExit(tau, min_layer=options.min_layer) for tau in options.taus),
    ]
    policies += [FixedExit(layer) for layer in options.fixed_layers]
    policies += [
        leave_at_last(tau, options.min_layer, last, depth) for last in options.last_layers for tau in options.taus
    ]
    for policy in tqdm(policies):
        rows, fraction = sample_rows(pipeline, policy, options.n, options.steps)
        distance = frechet_distance(hidden_features(classifier, rows), reference)
        table.add_row(str(policy), f"{fraction:.1%}", f"{distance:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()

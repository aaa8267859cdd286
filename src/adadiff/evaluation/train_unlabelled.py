"""Training of the feature network `unlabelled`: python -m adadiff.evaluation.train_unlabelled --help."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn

from adadiff.data import ImageData
from adadiff.evaluation.features import FeatureNetwork
from adadiff.evaluation.simclr import contrastive_loss, random_views
from adadiff.evaluation.small_network import SmallNetwork
from adadiff.evaluation.train_network import NetworkTraining, batches_of, fit, load_pixels, saved
from adadiff.utils.files import require_empty_folder

NEIGHBOURS, REFERENCES = 20, 10_000


@dataclass(frozen=True)
class UnlabelledTraining(NetworkTraining):
    """Train a feature network on images without labels by SimCLR, and print how well its neighbours share a class."""

    epochs: int = 10
    """Passes over the images."""
    lr: float = 3e-3
    """Highest learning rate."""
    weight_decay: float = 0.01
    """Weight decay."""
    width: int = 16
    """Channels of the first convolution; there are 8 times as many features."""
    view_size: int = 24
    """Side of the random views, in pixels."""
    temperature: float = 0.2
    """Temperature of the contrastive loss."""


def train_unlabelled(config: UnlabelledTraining) -> tuple[float, float]:
    """Train the network by SimCLR (Chen et al. 2020, arXiv 2002.05709) with AdamW, and save it in float16.

    The projection head, two layers, is thrown away. Labels are read after the training alone, for the accuracies.

    Returns:
        Accuracy on the test images of a vote among the nearest training images by the untrained and by the saved
        network, each in [0, 1].

    Raises:
        InputError: If the images have no labels, or the folder is not empty.
    """
    require_empty_folder(config.out)
    data = [ImageData(each, condition="none") for each in (config.train, config.test)]
    images, test_images = map(load_pixels, data)
    torch.manual_seed(config.seed)
    network = SmallNetwork([], config.width, config.train.size, mirror=config.train.flip)
    network.to(memory_format=torch.channels_last)
    features = 8 * config.width
    head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features // 2))

    def loss_of(chosen: Tensor) -> Tensor:
        batch = (images[chosen] / 255).repeat(2, 1, 1, 1)
        views = random_views(batch, config.view_size, config.train.flip).contiguous(memory_format=torch.channels_last)
        first, second = head(network.features(2 * views - 1)).chunk(2)
        return contrastive_loss(first, second, config.temperature)

    def accuracy(network: SmallNetwork) -> float:
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:REFERENCES]
        known, tested = (
            torch.from_numpy(FeatureNetwork("unlabelled", network).of(batches_of(pixels)).vectors)
            for pixels in (images[chosen], test_images)
        )
        labels, test_labels = (torch.tensor(each.labels()) for each in data)
        return neighbour_accuracy(known, labels[chosen], tested, test_labels)

    untrained = accuracy(network.eval())
    trained = [*network.train().parameters(), *head.parameters()]
    fit(torch.optim.AdamW(trained, config.lr, weight_decay=config.weight_decay), len(images), loss_of, config)
    return untrained, accuracy(saved(network, config.out))


def neighbour_accuracy(
    features: Tensor, labels: Tensor, tested: Tensor, test_labels: Tensor, neighbours: int = NEIGHBOURS
) -> float:
    """Compute the accuracy of the most frequent class among each tested image's nearest ones by cosine, in [0, 1].

    Args:
        features: Features of labelled images, (n, features).
        labels: Their classes, (n,) int64.
        tested: Features of other images, (m, features).
        test_labels: Their classes, (m,) int64.
        neighbours: Number of nearest images that vote.
    """
    known, asked = (nn.functional.normalize(each, dim=1) for each in (features, tested))
    nearest = torch.cat([(few @ known.T).topk(neighbours, dim=1).indices for few in asked.split(1000)])
    guesses = labels[nearest].mode(1).values
    return (guesses == test_labels).double().mean().item()


if __name__ == "__main__":
    chosen = tyro.cli(UnlabelledTraining)
    before, after = train_unlabelled(chosen)
    print(
        f"a vote of the {NEIGHBOURS} nearest of {REFERENCES:,} training images finds the class of {after:.2%} of the "
        f"test images, and {before:.2%} by the untrained network; the network is in {chosen.out}"
    )

"""Training of the feature network `small`: python -m adadiff.evaluation.train_small --help."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.small_network import SmallNetwork
from adadiff.evaluation.train_network import NetworkTraining, batches_of, fit, load_pixels, saved
from adadiff.utils.errors import InputError
from adadiff.utils.files import require_empty_folder

SHIFT = 4  # largest shift of a training image, in pixels


@dataclass(frozen=True)
class SmallTraining(NetworkTraining):
    """Train the small feature network on labelled images, and print its accuracy on test images."""


def train_small(config: SmallTraining) -> float:
    """Train the network, save it in float16, and return the saved network's accuracy on the test images.

    By SGD with Nesterov momentum; images are flipped if the data configuration says so, and shifted by up to four
    pixels.

    Raises:
        InputError: If the data have no named classes, or the folder is not empty.
    """
    require_empty_folder(config.out)
    images, labels, class_names = load_labelled(config.train)
    test_images, test_labels, test_names = load_labelled(config.test)
    if class_names != test_names:
        raise InputError(
            f"the training classes are {class_names} and the test classes {test_names}: give splits of one data set"
        )
    torch.manual_seed(config.seed)
    network = SmallNetwork(class_names, sample_size=config.train.size, mirror=config.train.flip)
    network.to(memory_format=torch.channels_last)

    def loss_of(chosen: Tensor) -> Tensor:
        return F.cross_entropy(network(augment(images[chosen] / 255, config.train.flip))[1], labels[chosen])

    optimizer = torch.optim.SGD(
        network.parameters(), config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay
    )
    fit(optimizer, len(images), loss_of, config)
    return accuracy(saved(network, config.out), test_images, test_labels)


def load_labelled(config: DataConfig) -> tuple[Tensor, Tensor, list[str]]:
    """Load all images, (n, channels, size, size) uint8, their labels, (n,), and the names of the classes."""
    data = ImageData(config, condition="class")
    if data.class_names is None:
        raise InputError(f"{config.source} has no named classes: set a source of labelled images")
    return load_pixels(data), torch.tensor(data.labels()), data.class_names


def augment(images: Tensor, flip: bool) -> Tensor:
    """Shift each image by up to `SHIFT` pixels, mirroring its border into the gap, and flip half of them at random."""
    n, _, height, width = images.shape
    padded = F.pad(images, (SHIFT,) * 4, mode="reflect")
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, n, 1))
    rows = (down + torch.arange(height))[:, :, None]
    columns = (right + torch.arange(width))[:, None, :]
    mirrored = torch.rand(n, 1, 1) < (0.5 if flip else 0.0)
    columns = torch.where(mirrored, columns.flip(2), columns)
    return padded[torch.arange(n)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(network: SmallNetwork, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that the network classifies correctly, in [0, 1]."""
    guesses = torch.cat([network(few)[1].argmax(1) for few in batches_of(images)])
    return (guesses == labels).double().mean().item()


if __name__ == "__main__":
    chosen = tyro.cli(SmallTraining)
    share = train_small(chosen)
    print(f"{share:.2%} of the test images are classified correctly; the network is in {chosen.out}")

"""The training without labels, and what its neighbours say."""

from pathlib import Path

import pytest
import torch

from adadiff import InputError
from adadiff.data import ImageData
from adadiff.data.config import DIGITS
from adadiff.evaluation.features import FeatureNetwork, load_feature_network
from adadiff.evaluation.small_network import SmallNetwork
from adadiff.evaluation.train_network import SplitConfig, batches_of, load_pixels
from adadiff.evaluation.train_unlabelled import (
    UnlabelledTraining,
    neighbour_accuracy,
    train_unlabelled,
)

CIFAR = Path(__file__).parents[3] / "shared/data/cifar10"


def features_of(network, pixels):
    return torch.from_numpy(FeatureNetwork("unlabelled", network).of(batches_of(pixels)).vectors)


def test_the_accuracies_are_those_of_the_saved_network(tmp_path):
    train, test = (SplitConfig(DIGITS, size=8, split=split, flip=False) for split in ("train", "test"))
    config = UnlabelledTraining(train, test, tmp_path / "net", epochs=1, batch_size=64, width=2, view_size=8)
    untrained, trained = train_unlabelled(config)
    network = SmallNetwork.from_pretrained(tmp_path / "net", torch_dtype=torch.float32).eval()
    data = [ImageData(each) for each in (train, test)]
    known, asked = (features_of(network, load_pixels(each)) for each in data)
    labels = [torch.tensor(each.labels()) for each in data]
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))  # of equally near images
    assert trained == pytest.approx(neighbour_accuracy(known[order], labels[0][order], asked, labels[1]))
    assert untrained != trained
    assert known.shape[1] == 16
    assert network.classifier is None


def test_neighbours_vote():
    """Points on a circle: two classes on opposite sides."""
    angles = torch.tensor([0.0, 0.1, 0.2, 3.1, 3.2, 3.3])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    labels = torch.tensor([4, 4, 4, 7, 7, 7])
    asked = torch.tensor([[1.0, 0.1], [-5.0, 0.1]])
    assert neighbour_accuracy(features, labels, asked, torch.tensor([4, 7]), neighbours=3) == 1
    assert neighbour_accuracy(features, labels, asked, torch.tensor([4, 4]), neighbours=3) == 0.5


@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs CIFAR-10 under ../shared/data")
def test_the_packaged_network_knows_more_than_an_untrained_one():
    data = ImageData(SplitConfig(str(CIFAR / "test.parquet")))
    pixels = torch.stack([((data[k]["image"] + 1) * 127.5).round().byte() for k in range(1500)])
    labels = torch.tensor(data.labels()[:1500])
    torch.manual_seed(0)
    packaged = load_feature_network("unlabelled").network
    untrained = SmallNetwork([], 16, mirror=True).eval()
    accuracies = []
    for network in (untrained, packaged):
        features = features_of(network, pixels)
        accuracies.append(neighbour_accuracy(features[:1000], labels[:1000], features[1000:], labels[1000:]))
    assert accuracies[1] > accuracies[0] + 0.05


def test_a_full_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds other files"):
        train_unlabelled(UnlabelledTraining(SplitConfig(), SplitConfig(), tmp_path))

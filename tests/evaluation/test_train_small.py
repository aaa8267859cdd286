"""The training of the small feature network."""

import pytest
import torch

from adadiff import InputError
from adadiff.data import DataConfig
from adadiff.evaluation.small_network import SmallNetwork
from adadiff.evaluation.train_small import SmallTraining, accuracy, augment, load_labelled, train_small


def test_it_learns_digits_and_says_how_well(tmp_path):
    train, test = (DataConfig(size=8, split=split, flip=False) for split in ("train", "test"))
    share = train_small(SmallTraining(train, test, tmp_path / "net", epochs=8, batch_size=64, lr=0.1))
    network = SmallNetwork.from_pretrained(tmp_path / "net", torch_dtype=torch.float32).eval()
    images, labels, names = load_labelled(test)
    guesses = network(images / 255)[1].argmax(1)
    assert share == pytest.approx((guesses == labels).double().mean().item())
    assert share > 0.8
    assert network.config.class_names == names == [str(k) for k in range(10)]


def test_augmented_images_are_shifted_and_mirrored_windows_of_the_padded_ones():
    torch.manual_seed(0)
    images = torch.rand(64, 3, 16, 16)
    padded = torch.nn.functional.pad(images, (4,) * 4, mode="reflect")
    mirrored = 0
    for flip in (False, True):
        for image, out in zip(padded, augment(images, flip), strict=True):
            windows = [image[:, i : i + 16, j : j + 16] for i in range(9) for j in range(9)]
            plain = any(torch.equal(window, out) for window in windows)
            assert plain or (flip and any(torch.equal(window.flip(2), out) for window in windows))
            mirrored += not plain
    assert 16 < mirrored < 48


@torch.no_grad()
def test_a_mirrored_image_has_the_same_features_once_trained():
    network = SmallNetwork(["a", "b"], width=2, sample_size=8, mirror=True).eval()
    plain = SmallNetwork(["a", "b"], width=2, sample_size=8).eval()
    plain.load_state_dict(network.state_dict())
    images = torch.rand(3, 3, 8, 8)
    features, logits = network(images)
    torch.testing.assert_close(network(images.flip(3))[0], features)
    both = torch.stack([plain(images)[0], plain(images.flip(3))[0]])
    torch.testing.assert_close(features, both.mean(0))
    torch.testing.assert_close(logits, plain.classifier(features))
    torch.testing.assert_close(network.train()(images)[0], plain.train()(images)[0])


def test_accuracy_counts():
    network = SmallNetwork(["a", "b"], width=2, sample_size=8).eval()
    images = torch.randint(256, (30, 3, 8, 8), dtype=torch.uint8)
    guesses = network(images / 255)[1].argmax(1)
    assert accuracy(network, images, guesses) == 1
    assert accuracy(network, images, 1 - guesses) == 0


def test_a_full_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds other files"):
        train_small(SmallTraining(DataConfig(), DataConfig(), tmp_path))

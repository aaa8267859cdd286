"""Feature networks by name, and the features of real images on disk."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from adadiff import InputError
from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.features import FeatureNetwork, load_feature_network, reference_features
from adadiff.evaluation.small_network import SmallNetwork


class MeanColour(nn.Module):
    """Three features that are known beforehand."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.scale * images.mean((2, 3))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("adadiff.evaluation.features.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for k in range(6):
        Image.new("RGB", (8, 8), (40 * k, 0, 255)).save(tmp_path / f"photos/{k}.png")
    return lambda size=8: ImageData(DataConfig(source=str(tmp_path / "photos"), size=size))


def test_features_of_real_images_are_kept_until_the_data_or_the_network_change(photos, tmp_path):
    calls = []
    network = MeanColour()
    network.register_forward_hook(lambda *args: calls.append(1))
    judge = FeatureNetwork("mean", network)
    wanted = np.array([[40 * k / 255, 0, 1] for k in range(6)])
    for _ in range(2):
        assert np.allclose(reference_features([judge], photos())[0].vectors, wanted, atol=1e-6)
    assert len(calls) == 1
    reference_features([judge], photos(size=4))
    assert len(calls) == 2
    Image.new("RGB", (8, 8), (200, 0, 255)).save(tmp_path / "photos/0.png")
    assert reference_features([judge], photos())[0].vectors[0, 0] == pytest.approx(200 / 255)
    assert len(calls) == 3
    network.scale.data *= 2
    assert reference_features([judge], photos())[0].vectors[0, 0] == pytest.approx(400 / 255)
    assert len(calls) == 4


def test_networks_by_import_and_by_torchscript(tmp_path):
    images = torch.rand(4, 3, 8, 8)
    imported = load_feature_network("tests.evaluation.test_features:MeanColour")
    torch.jit.script(MeanColour()).save(str(tmp_path / "mean.pt"))
    scripted = load_feature_network(str(tmp_path / "mean.pt"))
    for network in (imported, scripted):
        assert np.allclose(network.of(images.split(3)).vectors, images.mean((2, 3)))
        assert network.of([images]).guesses is None


def test_a_folder_of_a_small_network_knows_its_classes(tmp_path):
    torch.manual_seed(0)
    small = SmallNetwork(["cat", "dog", "owl"], width=4, sample_size=16).eval()
    small.save_pretrained(tmp_path / "net")
    network = load_feature_network(str(tmp_path / "net"))
    images = torch.rand(5, 1, 16, 16)
    found = network.of([images])
    features, logits = small(images.expand(-1, 3, -1, -1))
    assert network.class_names == ("cat", "dog", "owl")
    assert np.allclose(found.vectors, features.detach(), atol=1e-5)
    assert found.guesses.tolist() == logits.argmax(1).tolist()
    assert found.vectors.shape == (5, 32)
    assert network.of([torch.rand(2, 3, 40, 40)]).vectors.shape == (2, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal", "there is no feature network 'smal': choose small, unlabelled, statistics, inception"),
        ("inception", "needs torch-fidelity and torchvision"),
        ("no.such:thing", "there is no 'thing' in a module 'no.such'"),
        ("math:sqrt", "math:sqrt returns no network when called without arguments"),
        ("builtins:dict", "builtins:dict is a dict: give a torch.nn.Module"),
        ("{tmp}", "holds no feature network that"),
        ("{tmp}/text.txt", "is not a TorchScript file"),
    ],
)
def test_bad_names_are_told(name, message, tmp_path):
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(InputError, match=message):
        load_feature_network(name.format(tmp=tmp_path))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images.mean((1, 2, 3)), r"returns shape \(2,\) for images of shape \(2, 3, 8, 8\)"),
        (lambda images: images[:1].flatten(1), r"returns shape \(1, 192\)"),
        (lambda images: [images], "returns list"),
        (lambda images: images.flatten(1) / 0, "NaN or infinite"),
        (
            lambda images: images @ images.new_zeros(3, 3),
            r"theirs fails on images of shape \(2, 3, 8, 8\): mat1 and|size",
        ),
    ],
)
def test_a_network_that_gives_no_features_is_named(function, message):
    class Theirs(nn.Module):
        def forward(self, images):
            return function(images)

    with pytest.raises(InputError, match=message) as caught:
        FeatureNetwork("theirs", Theirs()).of([torch.rand(2, 3, 8, 8)])
    assert "theirs" in str(caught.value)


def test_a_network_is_the_same_by_another_name_but_not_with_other_weights():
    first, other = FeatureNetwork("first", MeanColour()), MeanColour()
    assert first.same_as(FeatureNetwork("second", other))
    other.scale.data *= 2
    assert not first.same_as(FeatureNetwork("second", other))
    assert not FeatureNetwork("first", nn.ReLU()).same_as(FeatureNetwork("second", nn.ReLU()))  # no weights tell

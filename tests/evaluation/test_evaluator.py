"""The networks that samples are evaluated with, and the real images they are compared with."""

import numpy as np
import pytest
from PIL import Image

from adadiff import AdaDiffPipeline, InputError
from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.evaluator import Evaluator, class_agreement, evaluator_for
from adadiff.training.config import DiffusionConfig
from tests.conftest import make_model
from tests.evaluation.test_evaluate import Quadrants, make_reference


@pytest.fixture
def evaluator():
    return Evaluator(ImageData(DataConfig()), {"quadrants": make_reference("quadrants", Quadrants())}, 0.0)


@pytest.fixture
def colour_model(tmp_path):
    AdaDiffPipeline(make_model(in_channels=3), DiffusionConfig().build()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_real_images_are_read_once_for_all_networks(colour_model, tmp_path, monkeypatch):
    monkeypatch.setattr("adadiff.evaluation.features.cache_folder", lambda: tmp_path / "cache")
    rng, read = np.random.default_rng(0), []
    (tmp_path / "photos").mkdir()
    pixels = rng.integers(256, size=(6, 8, 8, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"photos/{k}.png")
    original = ImageData.__getitem__
    monkeypatch.setattr(ImageData, "__getitem__", lambda self, k: read.append(k) or original(self, k))
    names = ["tests.comparison.conftest:Quadrants", "tests.evaluation.test_features:MeanColour"]
    evaluator = evaluator_for(colour_model, DataConfig(source=str(tmp_path / "photos")), names, None, "cpu")
    assert read == list(range(6))
    assert list(evaluator.references) == names
    high, low = pixels.max(3) / 255, pixels.min(3) / 255
    assert evaluator.real_saturation == pytest.approx(((high - low) / high).mean(), rel=1e-5)
    colours = evaluator.references[names[1]].real.vectors
    assert np.allclose(colours, pixels.mean((1, 2)) / 255, atol=1e-5)


def test_class_agreement_counts_in_turns_and_only_what_the_network_knows():
    guesses = np.array([0, 1, 0, 0, 2])
    assert class_agreement(guesses, ["cat", "dog", "owl"], ["cat", "dog"]) == 0.6
    assert class_agreement(guesses, ["cat", "dog", "owl"], ["emu"]) is None
    assert class_agreement(guesses, ["cat", "dog", "owl"], []) is None
    assert class_agreement(None, ["cat"], ["cat"]) is None


def test_too_few_images_are_told_before_sampling(evaluator):
    evaluator.require_enough(5)
    with pytest.raises(InputError, match="4 images are too few for metrics on the features quadrants: at least 5"):
        evaluator.require_enough(4)


@pytest.mark.parametrize("n", [4, 5])
def test_too_few_real_images_are_refused_before_sampling(pipeline, tmp_path, monkeypatch, n):
    """Four features need five images, for a covariance; three neighbours need four."""
    monkeypatch.setattr("adadiff.evaluation.features.cache_folder", lambda: tmp_path / "cache")
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for k in range(n):
        Image.new("L", (8, 8), 20 * k).save(tmp_path / f"photos/{k}.png")
    data, network = DataConfig(source=str(tmp_path / "photos")), "tests.comparison.conftest:Quadrants"
    if n == 5:
        assert evaluator_for(tmp_path / "model", data, [network], None, "cpu").first.least_images == 5
        return
    with pytest.raises(
        InputError, match=r"4 real images are too few for metrics on the features .*: at least 5 are needed"
    ):
        evaluator_for(tmp_path / "model", data, [network], None, "cpu")


def test_features_that_never_change_are_refused(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("adadiff.evaluation.features.cache_folder", lambda: tmp_path / "cache")
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for k in range(300):  # the mean of so many is not exactly each of them
        Image.new("L", (8, 8), 100).save(tmp_path / f"photos/{k}.png")
    data, network = DataConfig(source=str(tmp_path / "photos")), "tests.comparison.conftest:Quadrants"
    with pytest.raises(InputError, match="are the same for all real images: choose another"):
        evaluator_for(tmp_path / "model", data, [network], None, "cpu")


@pytest.mark.parametrize(
    ("side", "mode", "settings", "message"),
    [
        (4, "RGB", {}, "smaller"),
        (8, "L", {}, "are grey, but the model's are RGB"),
        (8, "RGB", {"clip": "no/such"}, "the model takes none: leave --clip out"),
        (8, "RGB", {"features": ["no-such"]}, "no feature network"),
        (8, "RGB", {"features": []}, "set --features"),
    ],
)
def test_an_evaluator_that_does_not_fit_is_refused(tmp_path, side, mode, settings, message):
    AdaDiffPipeline(make_model(in_channels=3), DiffusionConfig().build()).save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    Image.new(mode, (side, side)).save(tmp_path / "photos/0.png")
    data = DataConfig(source=str(tmp_path / "photos"))
    with pytest.raises(InputError, match=message):
        evaluator_for(tmp_path / "model", data, **{"features": ["small"], "clip": None, "device": "cpu", **settings})

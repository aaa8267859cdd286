"""The scales of the fixed statistics."""

import numpy as np
import torch
from PIL import Image

from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.features import load_feature_network
from adadiff.evaluation.fit_statistics import fit_statistics
from adadiff.evaluation.train_network import load_pixels


def test_the_statistics_of_the_images_have_mean_0_and_deviation_1(tmp_path):
    (tmp_path / "photos").mkdir()
    for k, pixels in enumerate(np.random.default_rng(0).integers(256, size=(40, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(pixels // (k % 5 + 1)).save(tmp_path / f"photos/{k}.png")
    config = DataConfig(str(tmp_path / "photos"), size=16)
    fit_statistics(config, tmp_path / "network")
    network = load_feature_network(str(tmp_path / "network"))
    vectors = torch.from_numpy(network.of([load_pixels(ImageData(config)) / 255]).vectors)
    assert vectors.mean(0).abs().max() < 1e-3
    assert torch.allclose(vectors.std(0), torch.ones(128), atol=1e-2)

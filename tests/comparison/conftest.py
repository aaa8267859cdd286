"""A comparison small enough to be run whole."""

import pytest
import torch
from torch import nn

from adadiff import AdaDiffPipeline
from adadiff.comparison.bench import Bench
from adadiff.comparison.config import CompareConfig, FineTuning
from adadiff.comparison.networks import Networks
from adadiff.training.presets import DIGITS
from tests.conftest import make_model


class Quadrants(nn.Module):
    """Means of the four quadrants: features of which few images are enough."""

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of a model like the digits', but tiny."""
    monkeypatch.setattr("adadiff.evaluation.features.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("adadiff.comparison.bench.PILOT_IMAGES", 4)
    monkeypatch.setattr("adadiff.comparison.methods.HALVINGS", 4)
    monkeypatch.setattr("adadiff.comparison.cells.TIMED_IMAGES", 2)
    model = make_model(depth=5, width=16, num_heads=2)
    torch.manual_seed(0)
    AdaDiffPipeline(model, DIGITS.diffusion.build()).save_pretrained(tmp_path / "backbone")
    return CompareConfig(
        backbone=str(tmp_path / "backbone"),
        preset="digits",
        reference="digits",
        reference_split="test",
        features="tests.comparison.conftest:Quadrants",
        fine_tuning=FineTuning(steps=2, batch_size=4),
        images=6,
        headline_images=8,
        steps=4,
        compute=(0.55, 0.7),
        smaller_depths=(3,),
        pruned=(0.7,),
        synergy_steps=(2, 4),
        synergy_compute=(1.0, 0.55),
    )


@pytest.fixture
def bench(config, tmp_path):
    return Bench(config, Networks(config, tmp_path / "networks"))

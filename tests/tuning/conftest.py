"""A tiny model of classes, and feature networks with random weights that judge its images."""

import pytest
import torch
from torch import nn

from adadiff import AdaDiffPipeline
from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.evaluator import Evaluator, Reference
from adadiff.evaluation.features import FeatureNetwork
from adadiff.sampling import Conditions, Guidance, SamplingPlan
from adadiff.training.config import DiffusionConfig
from adadiff.tuning import TunablePipeline, default_plan
from tests.conftest import make_model

NAMES = ("cat", "dog", "owl")


class RandomFeatures(nn.Module):
    """A random layer on the pixels: 5 features, and a class."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.randn(64, 8, generator=generator) / 8, requires_grad=False)

    def forward(self, images):
        values = (images.flatten(1) @ self.weights).tanh()
        return values[:, :5], values[:, 5:]


def random_features():
    return RandomFeatures(2)


def more_random_features():
    return RandomFeatures(3)


def reference(name, seed, real_seed=1):
    network = FeatureNetwork(name, RandomFeatures(seed), NAMES)
    real = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(real_seed)) ** 2
    return Reference(network, network.of([real]))


def make_evaluator(real_seed=1):
    references = {name: reference(name, k, real_seed) for k, name in enumerate(("searched", "judging"))}
    return Evaluator(ImageData(DataConfig()), references, 0.0)


@pytest.fixture(scope="package", autouse=True)
def few_recorded():
    """Schedules from fewer samples than a user's search records: none of these tests is about how good they are."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RECORDED": 4, "PROBED_STEPS": 2, "PROBED_SAMPLES": 2}.items():
            patch.setattr(f"adadiff.calibration.quick.{name}", value)
        yield


@pytest.fixture(scope="session")
def evaluator():
    return make_evaluator()


@pytest.fixture(scope="session")
def conditions():
    return Conditions((0, 1, 2))


@pytest.fixture(scope="session")
def classes_pipeline():
    """Classes cat, dog and owl, and a null class; nothing changes it."""
    model = make_model(num_classes=4, class_names=[*NAMES], null_class=3)
    pipeline = AdaDiffPipeline(model, DiffusionConfig().build())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def default(classes_pipeline):
    return default_plan(classes_pipeline, SamplingPlan(4, guidance=Guidance(3.0)))


@pytest.fixture(scope="session")
def tunable(classes_pipeline, default, conditions):
    return TunablePipeline(classes_pipeline, default, conditions)

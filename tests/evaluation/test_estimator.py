"""The study of the estimators on tables whose make-up is known, and against the model run image by image."""

import numpy as np
import pytest
import torch

from adadiff import AdaDiffPipeline, InputError
from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.estimator import EstimatorStudy, study_estimators, variance_shares
from adadiff.sampling.schedulers import scheduler_like
from adadiff.training.config import DiffusionConfig
from adadiff.utils.seeding import generator_for
from tests.conftest import make_model

STEP = np.array([-1.0, 0.0, 1.0])[:, None, None]
IMAGE = np.array([-1.0, 1.0, -1.0, 1.0])[None, :, None]
LAYER = np.array([-1.0, 1.0])[None, None, :]


def test_variance_shares_of_effects_put_together_by_hand():
    shares = variance_shares(3 * STEP + 2 * LAYER + IMAGE + STEP * LAYER + 0.5 * STEP * IMAGE + 7)
    variance = {"step": 9 * 2 / 3, "layer": 4, "step and layer": 2 / 3, "image": 1, "rest": 0.25 * 2 / 3}
    total = sum(variance.values())
    assert shares == pytest.approx({name: part / total for name, part in variance.items()})


def study_of(estimated, true):
    nothing = np.zeros((0, 1, 1))
    return EstimatorStudy(np.arange(len(estimated)), estimated, true, nothing, nothing, nothing)


def test_an_estimator_that_knows_the_step_alone_is_told_from_one_that_knows_the_image():
    rng = np.random.default_rng(0)
    truth = 0.5 + 0.1 * STEP + 0.02 * rng.normal(size=(3, 50, 2))
    blind = 0.5 + 0.1 * STEP + 0.002 * rng.normal(size=(3, 50, 2))
    study = study_of(blind, truth)
    assert study.rank_correlation > 0.8
    assert abs(study.sample_correlations).max() < 0.5
    assert "hardly more than step and layer" in study.verdict
    knowing = study_of(truth**2 + 0.2 * (truth - truth.mean(1, keepdims=True)), truth)
    assert knowing.sample_correlations.min() > 0.99
    assert "reflect more than step and layer" in knowing.verdict
    assert "little" not in study_of(truth + 0.05 * rng.normal(size=truth.shape), truth).verdict


def test_reliability_is_of_tenths_of_the_estimates():
    estimated = np.random.default_rng(1).permutation(np.arange(60.0)).reshape(3, 10, 2)
    mean, truth = study_of(estimated, 2 * estimated + 1).reliability()
    assert mean.tolist() == [2.5 + 6 * k for k in range(10)]
    assert truth.tolist() == [2 * (2.5 + 6 * k) + 1 for k in range(10)]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler", ["ddpm", "dpm-solver++"])
@torch.no_grad()
def test_the_table_is_that_of_the_images_one_by_one(prediction_type, scheduler):
    model = make_model(num_classes=11, null_class=10)
    trained_with = DiffusionConfig(prediction_type=prediction_type).build()
    pipeline = AdaDiffPipeline(model, scheduler_like(scheduler, trained_with))
    data = ImageData(DataConfig(size=8, channels=1, split="test"))
    study = study_estimators(pipeline, data, images=5, steps=3, seed=7)
    assert study.timesteps.tolist() == [0, 500, 999]
    abar = torch.cumprod(1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64), 0).float()
    for place, step in enumerate((0, 500, 999)):
        for k in range(5):
            clean, label = data[k]["image"], data[k]["label"]
            noise = torch.randn(1, 8, 8, generator=generator_for(7, k))
            noisy = abar[step].sqrt() * clean + (1 - abar[step]).sqrt() * noise
            target = (
                noise if prediction_type == "epsilon" else abar[step].sqrt() * noise - (1 - abar[step]).sqrt() * clean
            )
            predictions, uncertainties = model.all_exits(noisy[None], torch.tensor([step]), torch.tensor([label]))
            wanted = torch.tanh((predictions[:, 0] - target).abs()).mean((1, 2, 3))
            assert study.true[place, k] == pytest.approx(wanted.numpy(), abs=1e-4)
            assert study.estimated[place, k] == pytest.approx(uncertainties.mean((1, 2, 3, 4)).numpy(), abs=1e-4)
            if step == 500 and k < 4:
                error = torch.tanh((predictions[2, 0] - target).abs()).mean(0)
                assert study.true_maps[k] == pytest.approx(error.numpy(), abs=1e-4)


def test_what_cannot_be_studied_is_told(text_pipeline, pipeline):
    data = ImageData(DataConfig(size=8, channels=1, split="test"))
    with pytest.raises(InputError, match="takes text"):
        study_estimators(text_pipeline, data)
    with pytest.raises(InputError, match="there are 360 images, but the study needs 361"):
        study_estimators(pipeline, data, images=361)

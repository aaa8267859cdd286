"""Pinned behaviour: exit layers, FLOPs, images and losses stay as they were recorded.

The recorded files were written by `python -m tests.golden.record` on a CPU, in float32 and with one thread, with Python
3.11.7, torch 2.13.0, diffusers 0.42.1 and numpy 2.4.6. They are recorded again only where behaviour is meant to change,
and the commit that does so says why.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.golden.cases import TRAININGS, describe_training, sample, sampling_cases, train_losses
from tests.golden.record import IMAGES, SAMPLING, TRAINING

CASES = dict(sampling_cases())


@pytest.fixture(scope="module")
def samplings():
    return json.loads(SAMPLING.read_text())


@pytest.fixture(scope="module")
def images():
    return load_file(IMAGES)


@pytest.fixture(scope="module")
def trainings():
    return json.loads(TRAINING.read_text())


def test_every_recorded_result_has_its_case(samplings, images, trainings):
    assert samplings.keys() == images.keys() == CASES.keys()
    assert trainings.keys() == TRAININGS.keys()


@pytest.mark.parametrize("name", CASES)
def test_sampling(samplings, images, name):
    recorded = dict(samplings[name])
    assert CASES[name].describe() == recorded.pop("case")
    sampled = sample(CASES[name], recorded.pop("seed"))
    assert sampled.exits == recorded
    torch.testing.assert_close(sampled.images, images[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TRAININGS)
def test_training(trainings, tmp_path, name):
    assert describe_training(name) == trainings[name]["case"]
    losses = train_losses(name, tmp_path)
    assert losses.keys() == trainings[name]["losses"].keys()
    for term, recorded in trainings[name]["losses"].items():
        assert losses[term] == pytest.approx(recorded, rel=1e-5, abs=0), term

"""Pinned behaviour: exit layers, FLOPs, images and losses stay as they were recorded.

`python -m tests.golden.record` wrote the recorded files on an x86-64 CPU, in float32 and with one thread, with the
versions in `versions.json` (torch 2.13.0, diffusers 0.42.1, accelerate 1.15.0). They are recorded again only where
behaviour is meant to change, and the commit that does so says why.

With the kernels of torch, oneDNN and MKL for older CPUs (`ATEN_CPU_CAPABILITY=default` or `avx2`), no exit layer is
another, images are within 6e-6 and losses within 3e-7, relative.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.golden.cases import TRAININGS, sample, sampling_cases, train_losses
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
    assert TRAININGS[name] == trainings[name]["case"]
    losses = train_losses(name, tmp_path)
    assert losses.keys() == trainings[name]["losses"].keys()
    for term, recorded in trainings[name]["losses"].items():
        assert losses[term] == pytest.approx(recorded, rel=1e-5, abs=0), term

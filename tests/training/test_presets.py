"""The presets: sizes as published, data of the shape they say, and nothing that does not build."""

import dataclasses

import pytest
import torch

from adadiff.training.footprint import PeakMemory, footprint
from adadiff.training.presets import PRESETS

# Table 1 of "All are Worth Words" (Bao et al. 2023) and the README of its release: parameters in millions.
PUBLISHED = {
    "cifar10-uvit-s": 44,
    "celeba64-uvit-s": 44,
    "imagenet64-uvit-m": 131,
    "imagenet64-uvit-l": 287,
    "imagenet256-uvit-l": 287,
    "imagenet512-uvit-l": 287,
    "imagenet256-uvit-h": 501,
    "imagenet512-uvit-h": 501,
    "mscoco256-uvit-s": 45,
    "mscoco256-uvit-s-deep": 58,
}


def build(name):
    preset = PRESETS[name]
    config = preset.train
    names = [str(k) for k in range(10)] if config.model.num_classes is None else None
    with torch.device("meta"):
        return config.model.build(preset.shape, config.diffusion.network_time(), names, preset.context_shape)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_networks_have_the_published_size(name):
    parameters = sum(parameter.numel() for parameter in build(name).backbone.parameters())
    assert round(parameters / 1e6) == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_checked_and_builds(name):
    preset = PRESETS[name]
    preset.train.check()
    assert preset.train.out.name == name
    model = build(name)
    latents = "latents" in preset.train.data.source
    side = preset.train.data.size // 8 if latents else preset.train.data.size
    assert preset.shape == (4 if latents else preset.train.data.channels, side, side)
    assert (model.backbone.context_shape is None) == (preset.train.model.condition != "text")
    guided = preset.train.sampling.guidance_scale > 1
    assert not guided or preset.train.condition_dropout > 0


@pytest.mark.parametrize("name", ["digits", "cifar10-xs", "cifar10-class-xs", "emoji-text-xs"])
def test_the_small_ones_fit_their_limits(name):
    encoder = PRESETS[name].train.model.build_text_encoder()
    parameters = sum(parameter.numel() for parameter in build(name).parameters())
    parameters += sum(parameter.numel() for parameter in encoder.parameters()) if encoder is not None else 0
    assert 2 * parameters < (2e6 if name == "digits" else 10e6)


def test_peak_memory_counts_what_is_alive_at_once():
    kilobyte = 256
    with PeakMemory() as memory:
        kept = torch.zeros(kilobyte)
        for _ in range(3):
            dropped = torch.ones(4 * kilobyte)
            dropped.add_(1).view(2, -1)
            del dropped
        total = kept + 1
    assert memory.peak == 4 * 5 * kilobyte
    assert memory.alive == 4 * 2 * kilobyte
    del total


def test_footprint():
    preset = PRESETS["digits"]
    shallow = dataclasses.replace(preset, train=dataclasses.replace(preset.train, mixed_precision="no"))
    needs = footprint(shallow)
    model = build("digits")
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert needs.parameters + needs.exit_parameters == everything
    assert needs.weights == 4 * everything
    assert needs.training_states == 20 * everything
    tokens, width, depth = 17, 64, 17
    linears = tokens * width * (4 + 8) * width * 2 * depth
    assert needs.flops > linears
    assert needs.flops < 1.4 * linears
    hidden = 4 * tokens * width  # bytes of one layer's tokens
    assert depth * 12 * hidden < needs.training_per_image < depth * 40 * hidden
    assert needs.sampling_per_image > (depth // 2) * hidden


def test_gradient_checkpointing_needs_less_memory():
    preset = PRESETS["digits"]
    checkpointed = dataclasses.replace(preset.train, gradient_checkpointing=True)
    assert footprint(dataclasses.replace(preset, train=checkpointed)).training_per_image < (
        0.5 * footprint(preset).training_per_image
    )

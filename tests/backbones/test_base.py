"""The contract of backbones: their configuration, their registry, the plain values they are stored as."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from adadiff import AdaDiffPipeline, AdaptiveModel, InputError
from adadiff.backbones import (
    BACKBONES,
    Backbone,
    BackboneConfig,
    InputSpec,
    LayerState,
    UViT,
    UViTConfig,
    backbone_named,
    backbone_of,
    backbone_settings,
)

INPUTS = InputSpec((8, 12), 3, num_classes=4, context_length=5, context_dim=6, time_scale=0.999, time_shift=1.0)


@pytest.fixture(autouse=True)
def same_registry(monkeypatch):
    """Forget the classes that a test defines."""
    before = dict(BACKBONES)
    yield
    BACKBONES.clear()
    BACKBONES.update(before)


def define(config: Any) -> type[Backbone]:
    class Mine(Backbone):
        Config = config

    return Mine


@pytest.mark.parametrize("inputs", [INPUTS, InputSpec((8, 8), 1)])
def test_what_is_stored_builds_the_same_backbone(inputs):
    config = UViTConfig(patch_size=2, width=12, depth=3, head_dim=5, mlp_ratio=1.5, final_conv=False)
    stored = backbone_settings(config, inputs)
    assert {"sample_size", "in_channels"}.isdisjoint(stored)
    built = UViT.from_settings(inputs.sample_size, inputs.in_channels, **stored)
    assert (built.config, built.inputs) == (config, inputs)
    built.load_state_dict(UViT(config, inputs).state_dict())


def test_defaults_of_the_inputs_are_not_stored_and_choices_always_are():
    stored = backbone_settings(UViTConfig(), InputSpec((8, 8), 1, num_classes=3))
    assert stored.keys() == {*UViTConfig.__dataclass_fields__, "num_classes"}


@pytest.mark.parametrize("name", ["digits", "cifar10-class-xs", "emoji-text-xs"])
def test_the_packaged_models_fingerprints_are_as_they_were(name):
    """Caches and folders of samples know a model by its fingerprint."""
    known = {"digits": "7dcce2984908e573", "cifar10-class-xs": "15cb6985b9fa0080", "emoji-text-xs": "2ff812ea0881f167"}
    model = AdaDiffPipeline.from_pretrained(name, own_settings=False).transformer
    assert model.identity() == {"fingerprint": known[name]}
    assert backbone_of(model.backbone.config) is UViT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widht": 16}, "uvit has no setting 'widht': did you mean width"),
        ({"width": 0}, "width is 0: it must be"),
        ({"mlp_ratio": "wide"}, "mlp_ratio is wide: it must be"),
        ({"num_classes": -1}, "num_classes is -1: it must be"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        AdaptiveModel(backbone_config=settings)


def test_a_class_registers_itself_under_its_module_and_is_found_by_its_config():
    @dataclass(frozen=True)
    class Config(BackboneConfig):
        rank: int = 2

    mine = define(Config)
    assert mine.name() == f"{__name__}:define.<locals>.Mine"
    assert backbone_named(mine.name()) is mine
    assert backbone_of(Config(rank=3)) is mine
    assert (UViT.name(), backbone_named("uvit"), backbone_of(UViTConfig())) == ("uvit", UViT, UViT)


def test_a_base_class_without_a_config_is_not_registered():
    class Base(Backbone):
        pass

    assert Base not in BACKBONES.values()


def test_a_backbone_that_is_not_there_is_named():
    with pytest.raises(InputError, match="no backbone 'uvits': did you mean uvit"):
        backbone_named("uvits")
    with pytest.raises(InputError, match=r"backbone my\.vit:ViT is not one of adadiff's: import my\.vit before"):
        AdaptiveModel(backbone_type="my.vit:ViT")
    with pytest.raises(InputError, match="BackboneConfig is the Config of no backbone"):
        backbone_of(BackboneConfig())


def test_a_config_must_be_the_classs_own_and_hold_choices_alone():
    @dataclass(frozen=True)
    class Given(BackboneConfig):
        in_channels: int = 3

    class NotADataclass(BackboneConfig):
        pass

    for config, message in (
        (Given, "has a field in_channels"),
        (NotADataclass, "frozen dataclass derived from BackboneConfig"),
        (dict, "frozen dataclass derived from BackboneConfig"),
        (UViTConfig, "is that of another class"),
        (BackboneConfig, "is that of another class"),
    ):
        with pytest.raises(TypeError, match=message):
            define(config)


def test_select_takes_the_rows_of_every_field_of_a_state():
    @dataclass(frozen=True)
    class State(LayerState):
        more: torch.Tensor

    state = State(torch.arange(6.0).view(3, 1, 2), torch.arange(3.0).view(3, 1), torch.arange(3))
    kept = state.select(torch.tensor([2, 0]))
    assert (kept.tokens[:, 0, 0].tolist(), kept.time[:, 0].tolist(), kept.more.tolist()) == ([4, 0], [2, 0], [2, 0])


def test_the_network_sees_scaled_and_shifted_times():
    assert INPUTS.network_time(torch.tensor([0.0, 9.0])).tolist() == pytest.approx([0.999, 9.99])
    assert (INPUTS.context_shape, replace(INPUTS, context_dim=None).context_shape) == ((5, 6), None)

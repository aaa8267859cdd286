"""The networks of a comparison."""

from dataclasses import replace

import pytest
import torch

from adadiff.comparison.networks import ADADIFF, BERXIT, CALM, FULL, RELEASED, Networks, Recipe
from adadiff.utils.files import PRETRAINED


@pytest.fixture
def networks(config, tmp_path):
    return Networks(config, tmp_path / "networks")


def test_a_network_is_trained_once_and_found_again(config, networks, tmp_path, monkeypatch):
    first = networks.pipeline(FULL).transformer.state_dict()
    monkeypatch.setattr("adadiff.comparison.networks.train", None)
    assert networks.pipeline(FULL) is networks.pipeline(FULL)
    again = Networks(config, tmp_path / "networks").pipeline(FULL).transformer.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_folder_without_a_model_does_not_hide_the_packages_model(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # as `adadiff compare digits --out digits` makes it
    assert Networks(replace(config, backbone="digits"), tmp_path / "networks").backbone == PRETRAINED / "digits"


def test_a_training_killed_before_its_first_checkpoint_starts_anew(networks, monkeypatch):
    from adadiff.comparison import networks as module

    train = module.train

    def killed(config):
        config.out.mkdir(parents=True)
        (config.out / "train.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        networks.pipeline(FULL)
    monkeypatch.setattr(module, "train", train)
    networks.pipeline(FULL)


@pytest.mark.parametrize(
    ("recipe", "depth", "estimators"),
    [
        (RELEASED, 5, 5),
        (BERXIT, 5, 1),
        (CALM, 5, 1),
        (Recipe(depth=3), 3, 3),
        (Recipe(ADADIFF.loss, compute=0.7), 5, 5),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_recipes_make_what_they_say(networks, recipe, depth, estimators):
    model = networks.pipeline(recipe).transformer
    assert (model.depth, len(model.estimators)) == (depth, estimators)
    full = networks.pipeline(FULL).transformer.part_flops.full
    if recipe.compute != 1:
        assert model.part_flops.full / full == pytest.approx(recipe.compute, abs=0.02)


def test_names_tell_recipes_apart():
    recipes = [
        FULL,
        ADADIFF,
        RELEASED,
        BERXIT,
        CALM,
        Recipe(depth=3),
        Recipe(compute=0.7),
        Recipe(ADADIFF.loss, compute=0.7),
    ]
    assert len({recipe.name for recipe in recipes}) == len(recipes)

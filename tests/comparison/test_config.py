"""The comparison's file."""

import json

import pytest

from adadiff import InputError
from adadiff.comparison import PlansConfig
from adadiff.comparison.config import CONFIGS, CompareConfig, load_config
from adadiff.training import TrainConfig

LEAST = {"backbone": "digits", "preset": "digits", "reference": "digits"}


def test_the_packages_own_are_read_by_name():
    names = {path.stem for path in CONFIGS.glob("*.json")}
    assert names >= {"digits", "cifar10"}
    for name in names:
        assert isinstance(load_config(name), PlansConfig if name.endswith("-plans") else CompareConfig)


def test_a_file_is_read_into_types(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**LEAST, "compute": [0.5, 0.55], "fine_tuning": {"steps": 7}}))
    config = load_config(str(path))
    assert config.compute == (0.5, 0.55)
    assert config.fine_tuning.steps == 7
    train = config.train_config(tmp_path / "net", tmp_path / "start")
    assert isinstance(train, TrainConfig)
    assert (train.steps, train.init_from, train.diffusion.beta_schedule) == (7, tmp_path / "start", "squaredcos_cap_v2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imagess": 5}, "imagess: unexpected keyword argument"),
        ({"images": "many"}, "images: input should be a valid integer"),
        ({"images": 0}, "images is 0: it must be at least 1"),
        ({"preset": "digit"}, "did you mean digits"),
        ({"compute": [0.3]}, "headline_compute is 0.55: it must be one of compute"),
        ({"compute": [0.55, 1.5]}, "fractions must be between 0 and 1"),
        ({"pruned": [0]}, "fractions must be between 0 and 1"),
        ({"synergy_compute": [0.5]}, "first fraction must be 1"),
        ({"dtype": "float8"}, "dtype: input should be 'float32' or 'bfloat16'"),
        ({"fine_tuning": {"step": 1}}, "fine_tuning.step: unexpected keyword argument"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, changes, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**LEAST, **changes}))
    with pytest.raises(InputError, match=message):
        load_config(str(path))


def test_a_file_that_is_not_there_or_no_json(tmp_path):
    with pytest.raises(InputError, match=r"no comparison or file 'digit': did you mean digits"):
        load_config("digit")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="invalid JSON"):
        load_config(str(tmp_path / "broken.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "trials is 0: it must be at least 1"),
        ({"trial": 5}, "trial: unexpected keyword argument"),
        ({"methods": ["our"]}, "no method 'our': did you mean ours"),
        ({"targets": [0.7]}, "each must be above 0 and at most most_compute, 0.6"),
        ({"floors": []}, "floors is empty: give 0 for no floor"),
        ({"floors": [1.5]}, "the floor agreement is 1.5"),
        ({"judges": ["small"]}, "small is among both"),
        ({"features": ["small", "small"]}, "the features small, small name a network twice"),
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"steps": 0}, "steps is 0: it must be at least 1"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5: it must be at least 1"),
    ],
)
def test_what_is_wrong_in_a_file_of_tuned_plans_is_named(tmp_path, changes, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"model": "digits", "reference": "digits", **changes}))
    with pytest.raises(InputError, match=message):
        load_config(str(path))

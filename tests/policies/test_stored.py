"""Policies in model folders: what is written comes back, and nonsense is refused."""

import json
from dataclasses import dataclass

import pytest

from adadiff import (
    BatchMeanExit,
    CorrectedScheduleExit,
    FixedExit,
    InputError,
    NeverExit,
    PatienceExit,
    ScheduleExit,
    TableExit,
    ThresholdExit,
)
from adadiff.policies import POLICIES, ExitPolicy
from adadiff.policies.stored import CalibrationContext, StoredPolicy, load_policy
from adadiff.utils.files import weights_checksum

TABLE = TableExit(((0.1, 0.2, 1.0, 0.0), (0.3, 0.4, 0.5, 0.6)))
CIRCUMSTANCES = CalibrationContext(None, 5, "ddim", 2, 1.0)


def store(folder, policy=TABLE, circumstances=CIRCUMSTANCES):
    return StoredPolicy(policy, circumstances, {"compute": 0.55}, {"kind": "excess error", "error": 0.01}).save(folder)


@pytest.mark.parametrize(
    "policy",
    [
        NeverExit(),
        FixedExit(3),
        ScheduleExit((2, 5)),
        CorrectedScheduleExit((5, 1)),
        CorrectedScheduleExit((5, 1), ((1.0, 1.0, 0.0), (0.99, 1.2, -0.3))),
        ThresholdExit(0.3, min_layer=2),
        ThresholdExit((0.3, 0.1)),
        TABLE,
        PatienceExit(0.2, 2, 1, 3),
        BatchMeanExit(0.4),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_every_policy_comes_back_as_it_was(policy, tmp_path):
    store(tmp_path, policy)
    assert load_policy(tmp_path) == policy


def test_the_file_is_readable(tmp_path):
    text = store(tmp_path).read_text()
    assert "[ 0.3, 0.4, 0.5, 0.6 ]" in text
    assert list(json.loads(text)) == ["version", "goal", "found", "calibrated_for", "policy", "sha256"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2, and this adadiff reads 1"),
        ({"policy": {"policy": "Magic"}}, "no policy 'Magic'"),
        ({"policy": {"policy": "TableExit"}}, "thresholds"),
        ({"policy": {"policy": "ThresholdExit", "tau": "much"}}, "tau"),
        ({"policy": {"policy": "ThresholdExit", "tau": 3}}, "tau is 3"),
        ({"policy": {"policy": "ScheduleExit", "layers": [1, 2, 3]}}, "3 exit layers: give one per step, 2"),
        ({"policy": {"policy": "FixedExit", "layer": 9}}, "layers are numbered 1 to 5"),
        ({"calibrated_for": {"steps": 2}}, "weights"),
        ({"goal": {"compute": "half"}}, "compute"),
    ],
)
def test_one_edited_into_nonsense_is_refused_in_one_line(change, message, tmp_path):
    path = store(tmp_path)
    written = json.loads(path.read_text())
    del written["sha256"]
    path.write_text(json.dumps({**written, **change}))
    with pytest.raises(InputError, match=message) as caught:
        load_policy(tmp_path)
    assert "\n" not in str(caught.value)
    assert "exit_policy.json" in str(caught.value)


def test_an_altered_file_is_refused_unless_its_checksum_is_gone_too(tmp_path):
    path = store(tmp_path)
    path.write_text(path.read_text().replace("0.3, 0.4", "0.3, 0.9"))
    with pytest.raises(InputError, match="was altered"):
        load_policy(tmp_path)
    written = json.loads(path.read_text())
    del written["sha256"]
    path.write_text(json.dumps(written))
    assert load_policy(tmp_path).thresholds[1][1] == 0.9


def test_what_is_no_json_and_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"holds no exit_policy\.json"):
        load_policy(tmp_path)
    (tmp_path / "exit_policy.json").write_text("{")
    with pytest.raises(InputError, match="cannot be used"):
        load_policy(tmp_path)
    (tmp_path / "exit_policy.json").write_text("{}")
    with pytest.raises(InputError, match="lacks 'version'"):
        load_policy(tmp_path)


def test_one_for_other_weights_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path / "transformer")
    store(tmp_path, circumstances=CalibrationContext("0" * 64, 5, "ddim", 2, 1.0))
    with pytest.raises(InputError, match="belongs to other weights"):
        load_policy(tmp_path)
    own = weights_checksum(tmp_path / "transformer")
    store(tmp_path, circumstances=CalibrationContext(own, 5, "ddim", 2, 1.0))
    assert load_policy(tmp_path) == TABLE


def test_other_circumstances_are_named_and_the_policy_stretched(tmp_path):
    store(tmp_path)
    stored = StoredPolicy.load(tmp_path)
    assert stored.differences("ddim", 2, 1.0) == []
    assert stored.differences("unipc", 4, 1.0) == ["scheduler unipc in place of ddim", "steps 4 in place of 2"]
    assert stored.for_steps(2) == TABLE
    first, second = TABLE.thresholds
    assert stored.for_steps(4) == TableExit((first, first, second, second))
    assert stored.for_steps(3) == TableExit((first, second, second))
    assert stored.for_steps(1) == TableExit((second,))


def test_policies_stretch_to_another_number_of_steps():
    assert ScheduleExit((1, 2, 3, 4)).stretched(2) == ScheduleExit((2, 4))
    assert ThresholdExit((0.1, 0.2)).stretched(4) == ThresholdExit((0.1, 0.1, 0.2, 0.2))
    for policy in (ThresholdExit(0.1), ThresholdExit((0.1, 0.2), per="layer"), NeverExit(), FixedExit(2)):
        assert policy.stretched(7) == policy


@dataclass(frozen=True)
class FallingThreshold(ExitPolicy):
    """A policy of a user's own."""

    taus: tuple[float, ...]

    def leaves(self, query):
        return query.uncertainty[:, -1] < self.taus[query.step]

    def check(self, depth, num_steps):
        if len(self.taus) != num_steps:
            raise InputError(f"give {num_steps} taus")

    def stretched(self, num_steps):
        return FallingThreshold(self.taus[:1] * num_steps)


def test_a_policy_of_the_users_own_is_stored_loaded_checked_and_stretched(tmp_path):
    path = store(tmp_path, FallingThreshold((0.5, 0.1)))
    assert json.loads(path.read_text())["policy"]["policy"] == f"{__name__}:FallingThreshold"
    assert load_policy(tmp_path) == FallingThreshold((0.5, 0.1))
    assert StoredPolicy.load(tmp_path).for_steps(3) == FallingThreshold((0.5, 0.5, 0.5))
    store(tmp_path, FallingThreshold((0.5,)))
    with pytest.raises(InputError, match="give 2 taus"):
        load_policy(tmp_path)


def test_a_policy_whose_module_is_not_imported_says_which_one(tmp_path, monkeypatch):
    store(tmp_path, FallingThreshold((0.5, 0.1)))
    monkeypatch.delitem(POLICIES, FallingThreshold.name())
    with pytest.raises(InputError, match=f"import {__name__} before it is loaded"):
        load_policy(tmp_path)


def test_a_policy_that_is_no_dataclass_is_refused_when_it_is_stored(tmp_path):
    class Plain(FallingThreshold):
        pass

    class Bare(ExitPolicy):
        def leaves(self, query):
            return query.samples >= 0

    assert Plain((0.5, 0.1)).describe()["taus"] == (0.5, 0.1)
    with pytest.raises(InputError, match="decorate it with @dataclass"):
        store(tmp_path, Bare())
    assert not list(tmp_path.iterdir())

"""TensorCache tensors: made once, found again, gone with other settings."""

import pytest
import torch

from adadiff import InputError
from adadiff.calibration.cache import TensorCache


def made(value):
    return lambda: {"value": torch.tensor([value])}


def never():
    raise AssertionError


def test_what_is_kept_is_made_once_in_memory_and_in_a_folder(tmp_path):
    for cache in (TensorCache(), TensorCache(tmp_path / "kept", {"steps": 5})):
        assert cache.compute_once("a", made(1.0))["value"] == 1
        assert cache.compute_once("a", never)["value"] == 1
        assert cache.compute_once("b", made(2.0))["value"] == 2
    again = TensorCache(tmp_path / "kept", {"steps": 5})
    assert again.compute_once("b", never)["value"] == 2
    again.discard()
    assert not (tmp_path / "kept").exists()


def test_nothing_half_made_is_kept(tmp_path):
    cache = TensorCache(tmp_path / "kept", {})
    with pytest.raises(AssertionError):
        cache.compute_once("a", never)
    assert not (tmp_path / "kept").exists()
    assert TensorCache(tmp_path / "kept", {}).compute_once("a", made(3.0))["value"] == 3


def test_what_was_kept_under_other_settings_is_deleted_and_other_files_are_not(tmp_path):
    TensorCache(tmp_path / "kept", {"steps": 5}).compute_once("a", made(1.0))
    assert TensorCache(tmp_path / "kept", {"steps": 6}).compute_once("a", made(2.0))["value"] == 2
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("a cat")
    with pytest.raises(InputError, match="already holds other files"):
        TensorCache(tmp_path / "photos", {"steps": 5})
    assert (tmp_path / "photos" / "cat.png").read_text() == "a cat"


def test_damaged_tensors_are_made_again_and_a_damaged_note_stands_for_other_settings(tmp_path):
    TensorCache(tmp_path, {"steps": 5}).compute_once("a", made(1.0))
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-2], whole[:-4] + bytes(4)):
        path.write_bytes(damaged)
        assert TensorCache(tmp_path, {"steps": 5}).compute_once("a", made(2.0))["value"] == 2
    (tmp_path / "calibration.json").write_text("{")
    assert TensorCache(tmp_path, {"steps": 5}).compute_once("a", made(3.0))["value"] == 3


def test_files_of_somebody_else_stay(tmp_path):
    cache = TensorCache(tmp_path / "kept", {"steps": 5})
    cache.compute_once("a", made(1.0))
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    cache.discard()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["notes.txt"]

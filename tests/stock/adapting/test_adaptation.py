"""Stored exit heads and estimators."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import adadiff
from adadiff import InputError
from adadiff.stock import Adaptation, FittedExits, LayerCosts
from adadiff.stock.adapting.adaptation import ADAPTATION, Settings
from tests.stock.test_adapt import adapted
from tests.stock.tiny import build


def made(times: tuple[float, ...] = (900.0, 500.0, 100.0)) -> FittedExits:
    """Two exits of a made-up transformer with tokens of 3 values, and predictions of 2."""
    settings = Settings("proj_out", (1, 4), times, LayerCosts(0.0, 0.2, (0.4, 0.4)), {"sample": True}, True)
    draws = torch.Generator().manual_seed(0)
    shapes = ((2, len(times), 2, 4), (2, len(times), 4), (2, len(times), 2))
    return FittedExits(settings, *(torch.rand(shape, generator=draws) for shape in shapes))


def test_what_is_saved_is_loaded_and_samples_alike(tmp_path: Path):
    tiny = build("dit")
    adaptation = adapted(tiny)
    assert adaptation.save(tmp_path / "folder") == tmp_path / "folder" / ADAPTATION
    loaded = Adaptation.load(tmp_path / "folder")
    assert loaded.weights == adaptation.weights
    for name, fitted in adaptation.transformers.items():
        assert loaded.transformers[name].settings == fitted.settings
        for part in ("heads", "estimators", "errors"):
            assert torch.equal(getattr(loaded.transformers[name], part), getattr(fitted, part))
    samples = []
    for given in (adaptation, tmp_path / "folder", str(tmp_path / "folder")):
        adadiff.enable(tiny.pipe, adadiff.ThresholdExit(0.1), adaptation=given)
        samples.append(tiny())
    adadiff.disable(tiny.pipe)
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])


def test_heads_are_interpolated_between_times():
    fitted = made()
    first, second, third = fitted.heads[1]
    for time, head in ((950, first), (900, first), (700, (first + second) / 2), (200, (second + 3 * third) / 4)):
        torch.testing.assert_close(fitted.head(4, time), head)
    torch.testing.assert_close(fitted.head(4, 0.0), third)
    assert fitted.head(2, 500.0) is None
    torch.testing.assert_close(made((500.0,)).head(1, 3.0), made((500.0,)).heads[0, 0])


def test_uncertainties_are_the_hyperbolic_tangent_of_the_expected_relative_error():
    fitted, tokens = made(), torch.rand(5, 7, 3)
    weights = fitted.estimators[0, 1]
    expected = (tokens.mean(1) @ weights[:3] + weights[3]).exp().tanh()
    torch.testing.assert_close(fitted.uncertainty(1, 500.0, tokens), expected)
    sure = replace(fitted, estimators=torch.full_like(fitted.estimators, -5.0))
    assert (sure.uncertainty(1, 500.0, tokens) < 0.01).all()


def test_errors_are_averaged_over_time_and_transformers():
    fitted = made()
    errors = Adaptation({"transformer": fitted, "transformer_2": fitted}, "").errors()
    assert list(errors) == [1, 4]
    assert errors[4] == pytest.approx(tuple(fitted.errors[1].mean(0).tolist()))


def damaged(path: Path, **changes: Any) -> None:
    """Replace tensors or metadata of a stored adaptation."""
    with safe_open(path, framework="pt") as stored:
        metadata = dict(stored.metadata())
    tensors = load_file(path)
    for name, value in changes.items():
        if isinstance(value, torch.Tensor):
            tensors[f"transformer.{name}"] = value
        else:
            metadata[name] = value
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimators": torch.zeros(2, 3, 5)}, "its tensors do not fit each other"),
        ({"heads": torch.zeros(2, 3, 2, 4, dtype=torch.float64)}, "its tensors do not fit each other"),
        ({"errors": torch.zeros(1)}, "its tensors do not fit each other"),
        ({"transformers": "{"}, "is damaged, or holds no adaptation"),
        ({"transformers": json.dumps({"transformer": {"projection": "x"}})}, "is damaged, or holds no adaptation"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    path = Adaptation({"transformer": made()}, "weights").save(tmp_path)
    damaged(path, **changes)
    with pytest.raises(InputError, match=message):
        Adaptation.load(tmp_path)


def test_other_files_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=f"there is no {ADAPTATION} in it"):
        Adaptation.load(tmp_path)
    (tmp_path / ADAPTATION).write_bytes(b"no tensors")
    with pytest.raises(InputError, match="is damaged, or holds no adaptation"):
        Adaptation.load(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / ADAPTATION)
    with pytest.raises(InputError, match="is damaged, or holds no adaptation"):
        Adaptation.load(tmp_path)

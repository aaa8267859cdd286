"""`adadiff evaluate`."""

from __future__ import annotations

import json

import pytest
import torch

from adadiff.evaluation.small_network import SmallNetwork
from adadiff.utils.files import PRETRAINED
from tests.cli.conftest import run


def test_evaluate_and_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adadiff.evaluation.features.cache_folder", lambda: tmp_path / "cache")
    torch.manual_seed(0)
    SmallNetwork([str(k) for k in range(10)], width=1, sample_size=8).save_pretrained(tmp_path / "network")
    command = f"evaluate {PRETRAINED}/digits --data digits --data.split test --features {tmp_path}/network"
    with pytest.raises(SystemExit):
        run(command, f"-n 8 --steps 2 --out {tmp_path}/out")
    assert "8 images are too few for metrics on the features" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    run(command, f"-n 10 --steps 2 --tau 0.4 --out {tmp_path}/out")
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    metrics = figures["networks"][f"{tmp_path}/network"]
    assert f"{metrics['frechet']:.3f}" in printed
    assert figures["layer_fraction"] < 1
    assert metrics["class_agreement"] is None
    run(command, f"-n 10 --steps 2 --tau 0.4 --out {tmp_path}/out")
    again = json.loads((tmp_path / "out/metrics.json").read_text())
    assert again == figures

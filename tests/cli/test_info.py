"""`adadiff info`."""

from __future__ import annotations

import pytest

from adadiff.cli.output import console
from tests.cli.conftest import run


def test_info(capsys):
    run("info imagenet256-uvit-l")
    printed = capsys.readouterr().out
    assert all(
        figure in printed for figure in ("286.8M", "152.91 GFLOP", "300,000 steps of 1024", "guidance scale 1.4")
    )


def test_info_lists_the_plans_of_a_model(capsys, monkeypatch):
    monkeypatch.setattr(console, "width", 140)
    run("info digits")
    printed = capsys.readouterr().out
    assert "FLOP per image and step" in printed  # of the preset of that name
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]
    assert [row for row in rows if len(row) == 5] == [
        ["45.0%", "50", "internal by layer 3 x 0.75 in [0.4, 1)", "CorrectedScheduleExit", "the model's own"],
        ["100.0%", "50", "unguided", "none", "the full model"],
    ]


def test_info_of_neither(capsys):
    with pytest.raises(SystemExit):
        run("info digitz")
    assert "there is no preset 'digitz'" in capsys.readouterr().err

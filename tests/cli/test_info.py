"""`adadiff info`."""

from __future__ import annotations

from tests.cli.conftest import run


def test_info(capsys):
    run("info imagenet256-uvit-l")
    printed = capsys.readouterr().out
    assert all(
        figure in printed for figure in ("286.8M", "152.91 GFLOP", "300,000 steps of 1024", "guidance scale 1.4")
    )

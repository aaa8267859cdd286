"""What all commands have in common: names of models, help, and the way errors are printed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import adadiff
from adadiff.utils.files import PRETRAINED
from tests.cli.conftest import files, run


def test_packaged_models_go_by_name_in_every_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(PRETRAINED)
    run("sample digits -n 2 --steps 2 --out samples")
    run("demo --model digits -n 2 --steps 2 --out demo")
    run("export digits own")
    run("convert digits digits.pth --to uvit")
    run("train digits --init-from digits --steps 1 --batch-size 2 --sample-every 0 --out run")
    run("calibrate digits --compute 0.6 --steps 2 --samples 8 --out policy")
    run("sample digits -n 2 --policy policy --out by-policy")
    assert files(PRETRAINED) == before
    run(f"sample {PRETRAINED}/digits -n 2 --steps 2 --out samples")  # the same request: the folder is taken


def test_version_and_help():
    for words, wanted in ((["--version"], adadiff.__version__), ([], "train"), (["sample", "--help"], "--tau")):
        done = subprocess.run([sys.executable, "-m", "adadiff", *words], capture_output=True, text=True)
        assert done.returncode == 0
        assert wanted in done.stdout


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(adadiff.InputError):
        run(f"--debug sample {tmp_path}/missing --out {tmp_path}/s")


@pytest.mark.parametrize("words", ["--import no_such_module info digits", "info digits --import"])
def test_a_module_to_import_that_is_not_there_is_named(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("adadiff: --import ")

"""What must come at once imports no deep-learning library, and names that are imported on first use are all there."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import adadiff
from adadiff.cli.commands import COMMANDS

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "datasets", "numpy")
LOADED = """
import json, sys
from contextlib import suppress

{work}
print(json.dumps([name for name in {heavy} if name in sys.modules]), file=sys.stderr)
"""


def heavy_modules(work: str) -> list[str]:
    """Which of the heavy libraries are loaded in a new process after this work."""
    script = LOADED.format(work=work, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stderr)


def commands(*lines: str) -> str:
    """Code that runs commands to their exit."""
    calls = [f"with suppress(SystemExit):\n    main({line.split()})" for line in lines]
    return "\n".join(["from adadiff.cli import main", *calls])


@pytest.mark.parametrize(
    "work",
    [
        "import adadiff\ndir(adadiff)\nadadiff.InputError",
        commands("--version"),
        commands("", "--help"),
        commands(*(f"{name} --help" for name in COMMANDS if name != "train")),  # its options are those of the presets
    ],
    ids=["import", "version", "help", "help of commands"],
)
def test_what_must_come_at_once_loads_no_heavy_library(work):
    assert heavy_modules(work) == []


def test_names_bring_what_they_need():
    assert "torch" in heavy_modules("import adadiff\nadadiff.ExitPolicy")


@pytest.mark.parametrize("package", ["adadiff", "adadiff.calibration", "adadiff.data"])
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    assert set(module.__all__) <= set(dir(module))


def test_a_name_that_is_not_there_is_an_error():
    with pytest.raises(AttributeError, match="module 'adadiff' has no attribute 'AdaDifPipeline'"):
        _ = adadiff.AdaDifPipeline
    with pytest.raises(ImportError, match="AdaDifPipeline"):
        from adadiff import AdaDifPipeline  # noqa: F401

"""The comparison with caches runs on a tiny random pipeline, and continues where it stopped."""

import importlib
import importlib.util
import json
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, hooks

from adadiff.utils.errors import InputError
from tests.conftest import REPOSITORY
from tests.stock.tiny import build

MODULES = ("stock_cache_dit", "stock_caches", "stock_measure", "stock_methods", "stock_report")
CACHES = {
    name for name in ("FirstBlockCache", "TaylorSeerCache", "MagCache", "SeaCache") if hasattr(hooks, f"{name}Config")
}
CACHE_DIT = {"DBCache (cache-dit)"} if importlib.util.find_spec("cache_dit") else set()
TARGET = 0.6


@pytest.fixture(scope="module")
def script():
    """The script, importable as it is when it runs."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    yield importlib.import_module("stock_caches")
    sys.path.remove(str(REPOSITORY / "benchmarks"))
    for name in MODULES:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "dit"
    build("dit").pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def command(script, model, tmp_path_factory):
    """Runs the script, once at first; the same command each time."""
    sizes = ["--steps", "6", "--samples", "8", "--batch-size", "4", "--calibration-samples", "8", "--repeats", "1"]
    out = tmp_path_factory.mktemp("results")
    arguments = [str(model), *sizes, "--targets", str(TARGET), "--out", str(out)]
    script.main(arguments)
    return arguments, out / "dit-dpm-solver-6-guidance-4"


def test_each_method_is_measured_at_the_compute_asked_for(command):
    cells = json.loads(command[1].with_suffix(".json").read_text())["cells"]
    methods = {cell["method"].replace("Seer", "SeerCache") for cell in cells.values()}
    assert methods == {"full model", "ours", "ours with fewer steps", "fewer steps", *CACHES, *CACHE_DIT}
    full = cells.pop("full")
    assert (full["compute"], full["error"]) == (1, 0)
    for cell in cells.values():
        assert TARGET - 0.17 < cell["compute"] <= TARGET + 0.02
        assert cell["error"] > 0  # the cache took effect
        assert cell["seconds"] > 0 < cell["full_seconds"]
        assert cell["repeats"]


def test_what_was_measured_is_not_measured_again(command, script, monkeypatch, capsys):
    arguments, results = command
    table = results.with_suffix(".md").read_text()
    monkeypatch.setattr(script, "cell", None)
    script.main(arguments)
    assert capsys.readouterr().out == table
    assert "| fewer steps | " in table
    with pytest.raises(TypeError):  # there is nothing to measure with
        script.main([*arguments, "--again", "fewer"])
    with pytest.raises(InputError, match="other settings"):
        script.main([*arguments, "--repeats", "2"])


def test_a_cache_leaves_nothing_behind(script, model):
    pipe = DiffusionPipeline.from_pretrained(model)
    bench = script.Bench(pipe, [1, 2], {"num_inference_steps": 6}, samples=4, batch_size=4, real=None)
    methods = script.caches(pipe, 6, bench.sample_pilot)
    assert len(methods) == len(CACHES)
    methods += [script.db_cache(pipe, 6) for _ in CACHE_DIT]
    before, plain = bench.sample_pilot(), type(pipe.transformer)
    for method in methods:
        setting = next(method.settings(TARGET, lambda _: TARGET))
        bench.sample(setting, range(4))
        assert type(pipe.transformer) is plain
        assert torch.equal(bench.sample_pilot(), before)


def test_the_report_says_what_was_met(script, tmp_path):
    errors = {"ours": 0.02, "ours with fewer steps": 0.001, "fewer steps": 0.06, "SeaCache": 0.03, "MagCache": 0.05}
    cells = {name: {"method": name, "target": 0.55, "compute": 0.55, "error": error} for name, error in errors.items()}
    (tmp_path / "cells.json").write_text(json.dumps({"cells": cells}))
    table = importlib.import_module("stock_report").asked([tmp_path / "cells.json"])
    row = "| cells | 55% | 2.000% | 1.500% (a quarter of 6.000%) | not met | 3.000%, SeaCache | met |"
    assert table.splitlines()[2:] == [row]

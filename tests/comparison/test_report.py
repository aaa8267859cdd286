"""The report: what it says in words and tables, and that the page holds everything."""

import base64
import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from adadiff.comparison.cells import Cell
from adadiff.comparison.methods import METHODS
from adadiff.comparison.report import (
    conditions_in_words,
    difference_in_errors,
    synergy_in_words,
    winner_in_words,
    write_report,
)
from adadiff.comparison.run import Results
from adadiff.evaluation.estimator import EstimatorStudy
from adadiff.evaluation.evaluate import Evaluation
from adadiff.evaluation.evaluator import NetworkMetrics
from adadiff.runtime.trace import TraceTotals


def make_cell(name, method, target, compute, frechet, error=0.1):
    metrics = NetworkMetrics(frechet, error, 0.01, 0.7, 0.6, None)
    evaluation = Evaluation(10, {"small": metrics}, 0.3, 0.26, None, 0.5, 0.5, 3.0, ())
    return Cell(name, method, f"{name} setting", target, compute, compute, 1.0, 2.0, evaluation)


@pytest.fixture
def results(config):
    cells = [make_cell(f"{m.name}-0.55", m.name, 0.55, 0.55, 5.0 + k) for k, m in enumerate(METHODS)]
    cells += [make_cell("adadiff-0.7", "adadiff", 0.7, 0.69, 4.0)]
    grid = tuple(
        tuple(make_cell(f"{row}-{column}", "adadiff", row, row * column, 3 / column) for column in (0.5, 1.0))
        for row in (1.0, 0.55)
    )
    rng = np.random.default_rng(0)
    study = EstimatorStudy(np.arange(3), *rng.random((2, 3, 5, 4)), rng.random((2, 1, 8, 8)), *rng.random((2, 2, 8, 8)))
    return Results(config, make_cell("full", "full", 1.0, 1.0, 3.0), tuple(cells), grid, grid, study)


def with_distance(results, method, frechet):
    def changed(cell):
        if cell.method != method or cell.target != 0.55:
            return cell
        networks = {"small": replace(cell.evaluation.first, frechet=frechet)}
        return replace(cell, evaluation=replace(cell.evaluation, networks=networks))

    return replace(results, cells=tuple(changed(cell) for cell in results.cells))


def test_the_winner_is_named_with_what_is_as_good(results):
    words = winner_in_words(results)
    assert "full model, fewer steps (fewer-steps-0.55 setting) has the lowest Fréchet distance, 5.00 ± 0.10" in words
    assert "the full model has 3.00 ± 0.10" in words
    assert "Within two" not in words
    assert "one threshold, per sample has 7.00 ± 0.10: 40.0% higher, a difference of 14.1 standard errors" in words
    near = winner_in_words(with_distance(results, "adadiff", 5.2))
    assert "Within two standard errors: AdaDiff, one threshold, per sample (5.20 ± 0.10)" in near
    first = winner_in_words(with_distance(results, "adadiff", 4.0))
    assert "AdaDiff, one threshold, per sample (adadiff-0.55 setting) has the lowest" in first
    assert "one threshold, per sample has" not in first


def test_differences_are_in_errors_of_both():
    one, other = make_cell("a", "adadiff", 0.5, 0.5, 5.0, 0.3), make_cell("b", "adadiff", 0.5, 0.5, 4.0, 0.4)
    assert difference_in_errors(one, other) == pytest.approx(2.0)


def test_that_numbers_of_samples_differ_is_said_where_they_do(config):
    words = conditions_in_words(replace(config, images=6, headline_images=8))
    assert "6 samples per cell, 8 at 55% and for the full model (distances from different numbers" in words
    alike = conditions_in_words(replace(config, images=8, headline_images=8))
    assert "8 samples per cell, from the same noise" in alike


def test_synergy_tells_the_corners_of_the_grid(results):
    (steps, _) = synergy_in_words(results)
    assert "takes 50% of the compute at a Fréchet distance of 6.00 ± 0.10; " in steps
    assert "55% at 3.00 ± 0.10; both together 28% at 6.00 ± 0.10. " in steps
    assert steps.endswith("The product of the two compute fractions is 28%.")


def test_the_page_holds_everything_itself_and_its_markdown_the_same(results, tmp_path):
    for cell in (results.full, *results.cells):
        (tmp_path / "cells" / cell.name / "samples").mkdir(parents=True)
        for k in range(10):
            Image.new("L", (8, 8), 20 * k).save(tmp_path / "cells" / cell.name / f"samples/{k:06d}.png")
    exits = torch.tensor(np.random.default_rng(0).multinomial(8, [0.2] * 5, size=4))
    unguided = torch.zeros(len(exits), dtype=torch.int64)
    totals = TraceTotals(exits, torch.zeros_like(exits), unguided, 100, 10, (3.0, 2.0, 1.0, 0.0))
    (tmp_path / "cells/adadiff-0.55/samples/trace.json").write_text(json.dumps(totals.to_dict()))
    write_report(results, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert winner_in_words(results).replace("'", "&#39;") in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    beside = (tmp_path / "report.md").read_text()
    assert winner_in_words(results) in beside
    pictures = re.findall(r"!\[.*\]\((.*)\)", beside)
    assert len(pictures) == 8
    for name, source in zip(pictures, sources, strict=True):
        assert base64.b64encode((tmp_path / name).read_bytes()).decode() in source
    for method in METHODS:
        assert page.count(method.title) >= 2
        assert beside.count(method.title) >= 2
    (row,) = (line for line in beside.splitlines() if line.startswith("| AdaDiff, one threshold") and "0.7 s" in line)
    assert row.split(" | ")[1:6] == ["adadiff-0.7 setting", "69.0%", "69.0%", "2.00x", "4.00 ± 0.10"]

    assert "class agreement" not in page + beside  # of a model without classes

    rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(rows) == 1 + len(results.cells) + 8
    assert [row["frechet"] for row in rows if row["name"] == "adadiff-0.7"] == ["4.0"]
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["full"]["evaluation"]["networks"]["small"]["frechet"] == 3.0
    assert saved["estimators"]["verdict"] == results.study.verdict

    write_report(replace(results, study=None), tmp_path)
    assert "Accuracy of the uncertainty estimators" not in (tmp_path / "index.html").read_text()

    early = replace(results, cells=results.cells[:1], steps_synergy=(), pruning_synergy=(), study=None, unfilled=7)
    write_report(early, tmp_path)
    for name in ("index.html", "report.md"):
        text = (tmp_path / name).read_text()
        assert "Incomplete: 7 cells are still missing." in text
        assert "With fewer steps, and with pruning" not in text
        assert "Where samples leave" not in text

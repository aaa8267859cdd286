"""A whole comparison, and again."""

import json
from dataclasses import asdict, replace
from functools import partial

import pytest
from filelock import FileLock

from adadiff import InputError
from adadiff.comparison import cells, compare
from adadiff.comparison.methods import METHODS


def test_every_cell_is_filled_once_and_found_again(config, tmp_path, monkeypatch):
    results = compare(config, tmp_path / "report")
    assert results.full.compute == pytest.approx(1)
    assert results.full.evaluation.images == 8
    assert {cell.method for cell in results.cells} == {method.name for method in METHODS}
    for cell in results.cells:
        assert cell.evaluation.images == (8 if cell.target == 0.55 else 6)
        assert 0 < cell.compute < 1.05
        assert cell.seconds > 0
    assert [cell.setting for cell in results.steps_synergy[0]] == ["tau 0, 2 steps", "tau 0, 4 steps"]
    assert results.steps_synergy[0][0].compute == pytest.approx(0.5)
    assert results.pruning_synergy[0][1].compute == pytest.approx(0.7, abs=0.02)

    monkeypatch.setattr("adadiff.comparison.cells.sample_to_folder", None)
    monkeypatch.setattr("adadiff.comparison.networks.train", None)
    again = compare(config, tmp_path / "report")
    assert replace(again, study=None) == replace(results, study=None)
    assert (again.study.estimated == results.study.estimated).all()


def test_a_killed_comparison_loses_one_cell_at_most(config, tmp_path, monkeypatch):
    few = ("fewer-steps", "smaller", "adadiff", "duodiff", "pruned")
    config = replace(config, methods=few, compute=(0.55,), synergy_steps=(4,), synergy_compute=(1.0,))
    done, measure = [], cells.Cells._measure

    def counted(self, task, setup):
        if len(done) == most:
            raise KeyboardInterrupt
        done.append(task.name)
        return measure(self, task, setup)

    monkeypatch.setattr(cells.Cells, "_measure", counted)
    most = 3
    with pytest.raises(KeyboardInterrupt):
        compare(config, tmp_path / "report")
    halfway = compare(config, tmp_path / "report", so_far=True)
    assert [cell.name for cell in (halfway.full, *halfway.cells)] == done
    assert (halfway.steps_synergy, halfway.pruning_synergy) == ((), ())
    assert halfway.unfilled == len(few) - 2 + 1 + 2
    most = None
    compare(config, tmp_path / "report")
    assert len(done) == len(set(done))
    assert {path.parts[-3] for path in (tmp_path / "report/cells").glob("*/samples/metrics.json")} == set(done)


def test_there_is_no_report_so_far_of_what_was_not_begun(config, tmp_path):
    with pytest.raises(InputError, match="no comparison with a cell of the full model yet"):
        compare(config, tmp_path / "report", so_far=True)
    assert not (tmp_path / "report").exists()


def test_only_the_named_methods_are_compared(config, tmp_path):
    chosen = replace(config, methods=("adadiff", "fixed"), compute=(0.55,), synergy_compute=())
    results = compare(chosen, tmp_path / "report")
    assert [cell.name for cell in results.cells] == ["adadiff-0.55", "fixed-0.55"]
    assert (results.steps_synergy, results.pruning_synergy, results.unfilled) == ((), (), 0)
    with pytest.raises(InputError, match="no method 'fixd': did you mean fixed"):
        compare(replace(config, methods=("fixd",)), tmp_path / "other")


@pytest.mark.parametrize(
    ("missing", "message"),
    [({"backbone": "nowhere"}, "there is no model nowhere"), ({"reference": "./nowhere"}, "no file or folder")],
)
def test_without_what_it_needs_a_comparison_leaves_nothing(config, tmp_path, missing, message):
    with pytest.raises(InputError, match=message):
        compare(replace(config, **missing), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_another_comparison_is_refused_in_the_same_folder(config, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds other files"):
        compare(config, tmp_path / "report")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/compare.json").write_text(json.dumps(asdict(config)))
    with pytest.raises(InputError, match="comparison with steps = 4, not 5"):
        compare(replace(config, steps=5), tmp_path / "other")


def test_cells_that_another_process_is_at_come_last(tmp_path):
    done = []

    def choose(name):
        done.append(name)
        if name == "c":
            other.release()

    tasks = [cells.Task(name, "", 0.5, 1, partial(choose, name)) for name in "abc"]
    mine = cells.Cells(None, None, tmp_path)
    (tmp_path / "a").mkdir()
    other = FileLock(tmp_path / "a/cell.lock", thread_local=False)
    with other:
        assert mine.fill(tasks) == dict.fromkeys("abc")
    assert done == ["b", "c", "a"]
    assert mine.fill(tasks) == dict.fromkeys("abc")
    assert len(done) == 3

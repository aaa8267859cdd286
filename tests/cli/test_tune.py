"""`adadiff tune`: what it writes, and what it refuses."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import files, run

TINY = (
    "--data digits --features tests.tuning.conftest:random_features "
    "--judges tests.tuning.conftest:more_random_features --trials 2 --images 8 --confirm 8 --batch-size 8"
)


@pytest.fixture
def three_steps(model_folder):
    """A model whose default is three steps."""
    (model_folder / "sampling.json").write_text(json.dumps({"scheduler": "ddim", "steps": 3}))
    return model_folder


def test_tune_and_what_takes_its_plan_from_there(three_steps, tmp_path, capsys):
    run(f"tune {three_steps} --compute 0.7 {TINY}")
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("full model at its best", "chosen", "judge", "8 fresh images"))
    assert (three_steps / "tuning/front.png").is_file()
    stored = json.loads((three_steps / "exit_policy.json").read_text())
    assert stored["goal"] == {"compute": 0.7}
    assert stored["found"]["compute"] <= 0.7
    run(f"sample {three_steps} -n 2 --out {tmp_path}/own")
    request = json.loads((tmp_path / "own/request.json").read_text())
    assert (request["steps"], request["policy"]) == (stored["calibrated_for"]["steps"], stored["policy"])
    before = files(three_steps)
    for words, message in (
        (f"tune {three_steps} --compute 0.7 {TINY}", "already holds an exit_policy.json: add --replace"),
        (f"tune {three_steps} --compute 0.6 --replace {TINY}", "holds a search with goal.compute = 0.7, not 0.6"),
    ):
        with pytest.raises(SystemExit) as error:
            run(words)
        assert error.value.code == 2
        assert message in capsys.readouterr().err
    assert files(three_steps) == before


def test_the_default_is_what_the_options_say(three_steps, capsys):
    run(f"tune {three_steps} --compute 0.9 --steps 2 --scheduler dpm-solver++ {TINY}")
    found = json.loads((three_steps / "exit_policy.json").read_text())["found"]
    assert (found["default"]["plan"]["steps"], found["default"]["plan"]["scheduler"]) == (2, "dpm-solver++")


def test_tune_a_stock_pipeline_and_what_samples_by_its_plan(tmp_path, capsys):
    run(f"tune digits-dit --compute 0.7 --steps 3 --class-index 0 1 --out {tmp_path}/plan {TINY}")
    stored = json.loads((tmp_path / "plan/exit_policy.json").read_text())
    assert stored["found"]["default"]["plan"]["steps"] == 3
    assert stored["found"]["compute"] <= 0.7
    run(f"sample digits-dit --policy {tmp_path}/plan -n 2 --out {tmp_path}/images")
    request = json.loads((tmp_path / "images/request.json").read_text())
    assert request["arguments"] == stored["calibrated_for"]["arguments"]
    assert request["policy"] == stored["policy"]


def test_floors_that_nothing_meets_overwrite_nothing(three_steps, capsys):
    (three_steps / "exit_policy.json").write_text("an earlier plan")
    with pytest.raises(SystemExit) as error:
        run(f"tune {three_steps} --recall 1 --precision 1 --replace {TINY}")
    assert error.value.code == 2
    assert "no plan met the floors on fresh images: the nearest, " in capsys.readouterr().err
    assert (three_steps / "exit_policy.json").read_text() == "an earlier plan"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{model} --compute 0.5 --judges other", "no real images are given: set --data"),
        ("{model} --compute 0.5 --gflops 1 --data digits", "give at most one budget: compute or gflops"),
        ("{model} --data digits --features unlabelled", "unlabelled is among both"),
        ("{model} --data digits --judges other --images 500 250", "the numbers of images are 500, 250: they must grow"),
        (
            "{model} --data digits --compute 0.001 " + TINY.replace("--data digits", ""),
            "one step with all layers takes",
        ),
        (
            "{model} " + TINY.replace("--images 8", "--images 4"),
            "the 4 images that --images begins with are too few",
        ),
        ("{model} --agreement 0.5 " + TINY, "do not know the model's classes"),
        (
            "digits --data digits --judges other",
            "digits is no folder of yours: say where the plan goes, with --out FOLDER",
        ),
        ("{model} --data digits --judges", "and there is none of one kind"),
        ("cifar10-dit --data digits --judges other", "say where the plan goes, with --out FOLDER"),
        (
            "digits-dit --out {model}/plan --cluster --judges other --data digits",
            "--cluster is for models of adadiff's",
        ),
        ("{model} --argument eta=1 --data digits --judges other", "--argument is for stock pipelines: leave it out"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_writes_nothing(three_steps, capsys, words, message):
    before = files(three_steps)
    with pytest.raises(SystemExit) as error:
        run("tune " + words.format(model=three_steps))
    assert error.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert files(three_steps) == before

"""`adadiff calibrate`, and the commands that take its policy."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import files, run


def any_difference(full, adaptive):
    return (full != adaptive).flatten(1).any(1)


def test_calibrate_and_what_takes_it_from_there(model_folder, tmp_path, capsys):
    run(f"calibrate {model_folder} --compute 0.6 --steps 3 --scheduler ddim --samples 8")
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("step schedule", "excess error", "chosen", "fresh samples"))
    assert (model_folder / "calibration.png").is_file()
    stored = json.loads((model_folder / "exit_policy.json").read_text())
    assert stored["goal"] == {"compute": 0.6}
    run(f"sample {model_folder} -n 2 --out {tmp_path}/own")
    request = json.loads((tmp_path / "own/request.json").read_text())
    assert (request["scheduler"], request["steps"], request["policy"]) == ("DDIMScheduler", 3, stored["policy"])
    run(f"demo --model {model_folder} -n 2 --out {tmp_path}/demo")
    assert not capsys.readouterr().err.count("adadiff:")
    run(f"sample {model_folder} -n 2 --steps 6 --out {tmp_path}/more")
    assert "used with steps 6 in place of 3" in capsys.readouterr().err
    run(f"sample {model_folder} -n 2 --tau 0 --out {tmp_path}/full")
    assert json.loads((tmp_path / "full/trace.json").read_text())["layer_fraction"] == 1
    before = files(model_folder)
    with pytest.raises(SystemExit):
        run(f"calibrate {model_folder} --compute 0.6 --steps 3 --samples 8")
    assert files(model_folder) == before
    run(f"calibrate {model_folder} --compute 0.8 --steps 3 --samples 8 --replace --metric {__name__}:any_difference")
    stored = json.loads((model_folder / "exit_policy.json").read_text())
    assert stored["goal"] == {"compute": 0.8}
    assert (stored["found"]["metric"], stored["found"]["error"]) == (f"{__name__}:any_difference", 1)


def test_a_policy_in_another_folder_is_the_same_and_leaves_the_model_alone(model_folder, tmp_path, capsys):
    before, options = files(model_folder), "--compute 0.6 --steps 3 --scheduler ddim --samples 8"
    run(f"calibrate {model_folder} {options} --out {tmp_path}/policy")
    assert files(model_folder) == before
    run(f"sample {model_folder} -n 2 --policy {tmp_path}/policy --out {tmp_path}/by-policy")
    run(f"calibrate {model_folder} {options}")
    run(f"sample {model_folder} -n 2 --out {tmp_path}/own")
    by_policy, own = ((tmp_path / name / "request.json").read_text() for name in ("by-policy", "own"))
    assert by_policy == own
    assert json.loads(own)["policy"] != {"policy": "NeverExit"}


def test_the_number_of_steps_is_chosen_too(model_folder, tmp_path, capsys):
    run(f"calibrate {model_folder} --compute 0.6 --steps 8 --scheduler dpm-solver++ --samples 8 --reference-steps 20")
    assert "error against 20 steps with all layers" in capsys.readouterr().out
    stored = json.loads((model_folder / "exit_policy.json").read_text())
    steps = stored["calibrated_for"]["steps"]
    assert stored["goal"]["compute"] * steps == pytest.approx(0.6 * 8)
    run(f"sample {model_folder} -n 2 --out {tmp_path}/own")
    assert json.loads((tmp_path / "own/request.json").read_text())["steps"] == steps


def test_reference_steps_go_with_a_budget_of_compute(model_folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(f"calibrate {model_folder} --error 0.1 --reference-steps 20")
    assert stopped.value.code == 2
    assert "--reference-steps goes with --compute" in capsys.readouterr().err


def test_several_budgets_are_stored_beside_each_other(model_folder, tmp_path, capsys):
    run(f"calibrate {model_folder} --compute 0.6 0.8 0.6 --steps 3 --scheduler ddim --samples 8 --periodic")
    printed = capsys.readouterr().out
    assert "those for other budgets in exit_policy-0.8.json" in printed
    plans = {path.name: json.loads(path.read_text()) for path in model_folder.glob("exit_policy*.json")}
    assert {name: plan["goal"] for name, plan in plans.items()} == {
        "exit_policy.json": {"compute": 0.6},
        "exit_policy-0.8.json": {"compute": 0.8},
    }
    assert all(plan["found"]["kind"] == "periodic schedule" for plan in plans.values())
    before = files(model_folder)
    with pytest.raises(SystemExit):
        run(f"calibrate {model_folder} --compute 0.7 --steps 3 --samples 8")
    assert files(model_folder) == before
    run(f"calibrate {model_folder} --compute 0.7 --steps 3 --samples 8 --replace --periodic")
    assert [path.name for path in model_folder.glob("exit_policy*.json")] == ["exit_policy.json"]

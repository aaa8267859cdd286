"""`adadiff sample`: a model's own settings, and its classes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from adadiff import AdaDiffPipeline, CorrectedScheduleExit, FixedExit
from adadiff.policies.stored import save_policies
from adadiff.sampling import SamplingPlan
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.training.config import DiffusionConfig
from tests.cli.conftest import run
from tests.conftest import make_model


def test_a_models_own_sampling_is_the_default(model_folder, tmp_path, capsys):
    SamplingDefaults(scheduler="unipc", steps=3, tau=1.0).save(model_folder)
    run(f"export {model_folder} {tmp_path}/half")
    run(f"sample {tmp_path}/half -n 2 --out {tmp_path}/own")
    request = json.loads((tmp_path / "own/request.json").read_text())
    assert (request["scheduler"], request["steps"]) == ("UniPCMultistepScheduler", 3)
    assert json.loads((tmp_path / "own/trace.json").read_text())["layer_fraction"] == 0.2
    run(f"sample {tmp_path}/half -n 2 --tau 0 --steps 2 --scheduler ddim --out {tmp_path}/asked")
    request = json.loads((tmp_path / "asked/request.json").read_text())
    assert (request["scheduler"], request["steps"]) == ("DDIMScheduler", 2)
    assert json.loads((tmp_path / "asked/trace.json").read_text())["layer_fraction"] == 1


def test_class_names_that_are_numbers_are_names(tmp_path):
    model = make_model(num_classes=5, class_names=["1", "10", "2", "3"], null_class=4)
    AdaDiffPipeline(model, DiffusionConfig().build()).save_pretrained(tmp_path / "model")
    run(f"sample {tmp_path}/model --class 1 10 -n 2 --steps 1 --out {tmp_path}/names")
    run(f"sample {tmp_path}/model --class-index 1 0 -n 2 --steps 1 --out {tmp_path}/indices")
    names, indices = (json.loads((tmp_path / f"{way}/request.json").read_text()) for way in ("names", "indices"))
    assert (names["conditions"]["classes"], indices["conditions"]["classes"]) == (["1", "10"], ["10", "1"])


def test_a_budget_chooses_among_the_plans_of_the_folder(class_pipeline, tmp_path, capsys):
    plans = [SamplingPlan(6, CorrectedScheduleExit((5, 1, 5, 1, 5, 1))), SamplingPlan(4, FixedExit(1))]
    stored = [class_pipeline.with_plan(plan).own_settings.stored for plan in plans]
    folder = tmp_path / "model"
    class_pipeline.save_pretrained(folder)
    SamplingDefaults("ddpm", 8).save(folder)
    save_policies([replace(each, goal={"compute": 0.2}) for each in stored], folder)
    for budget, steps in (("", 6), ("--budget 0.3", 4), ("--budget 1", 8)):
        out = tmp_path / f"out{steps}"
        run(f"sample {folder} -n 3 --out {out} {budget}")
        assert json.loads((out / "request.json").read_text())["steps"] == steps
        full = 8 * class_pipeline.transformer.part_flops.full
        compute = json.loads((out / "trace.json").read_text())["flops"] / 3 / full
        assert f"compute {compute:.1%} of the full model's in 8 steps" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        run(f"sample {folder} -n 3 --out {tmp_path}/none --budget 0.01")
    assert "no plan of the model takes at most 0.01" in capsys.readouterr().err

"""`adadiff sample`: a model's own settings, and its classes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from adadiff import AdaDiffPipeline, CorrectedScheduleExit, FixedExit, InputError
from adadiff.cli.output import console
from adadiff.policies.stored import load_policy, save_policies
from adadiff.sampling import Guidance, InternalGuidance, SamplingPlan
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.training.config import DiffusionConfig
from adadiff.utils.files import weights_checksum
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


PLAN = SamplingPlan(
    6,
    CorrectedScheduleExit((5, 1, 5, 1, 5, 1)),
    Guidance(2.0, (0.25, 0.75), tied=False, internal=InternalGuidance(3, 0.5, (0.0, 0.5))),
    "ddim",
    "trailing",
)


def folder_of(pipeline, folder):
    """The folders of a model without a plan, and of a plan for it alone."""
    pipeline.save_pretrained(folder / "model")
    context = pipeline.with_plan(PLAN).own_settings.stored.calibrated_for
    weights = weights_checksum(folder / "model/transformer")
    replace(context, weights=weights).stored(PLAN.policy, {"compute": 0.5}, {}).save(folder / "plan")
    return folder / "model", folder / "plan"


def asked(folder):
    """What was asked for in a folder of images: steps, policy, guidance, scheduler and its spacing."""
    request = json.loads((folder / "request.json").read_text())
    spacing = request["scheduler_config"]["timestep_spacing"]
    return *(request[name] for name in ("steps", "policy", "scheduler")), request["conditions"]["guidance"], spacing


def test_a_plan_of_another_folder_is_sampled_by(class_pipeline, tmp_path, capsys):
    model, plan = folder_of(class_pipeline, tmp_path)
    run(f"sample {model} -n 3 --out {tmp_path}/by-plan --policy {plan}")
    policy, guidance = json.loads(json.dumps([PLAN.policy.describe(), asdict(PLAN.guidance)]))
    assert asked(tmp_path / "by-plan") == (6, policy, "DDIMScheduler", guidance, "trailing")
    run(f"sample {model} -n 3 --out {tmp_path}/budget --policy {plan} --budget 0.7")
    assert asked(tmp_path / "budget") == asked(tmp_path / "by-plan")
    run(f"export {model} {tmp_path}/exported")
    run(f"sample {tmp_path}/exported -n 3 --out {tmp_path}/exported-full")
    assert asked(tmp_path / "exported-full")[:2] == (50, {"policy": "NeverExit"})
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(f"sample {tmp_path}/exported -n 3 --out {tmp_path}/other --policy {plan}")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "belongs to other weights than those of" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_a_model_without_its_own_settings_samples_by_a_plan_alone(class_pipeline, tmp_path):
    model, plan = folder_of(class_pipeline, tmp_path)
    pipe = AdaDiffPipeline.from_pretrained(model, own_settings=False, policy=plan)
    assert pipe.own_settings.stored.plan == PLAN
    pipe.save_pretrained(tmp_path / "saved")
    assert AdaDiffPipeline.from_pretrained(tmp_path / "saved").own_settings.stored.plan == PLAN


def test_a_policys_folder_counts_before_a_packaged_model_of_its_name(class_pipeline, tmp_path, monkeypatch):
    model, plan = folder_of(class_pipeline, tmp_path)
    plan.rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert AdaDiffPipeline.from_pretrained(model, policy="digits").own_settings.stored.plan == PLAN
    assert load_policy("digits") == PLAN.policy


def test_a_policy_that_cannot_be_for_this_model_is_refused(class_pipeline, tmp_path):
    model, plan = folder_of(class_pipeline, tmp_path)
    with pytest.raises(InputError, match="give either policy or transformer"):
        AdaDiffPipeline.from_pretrained(model, policy=plan, transformer=class_pipeline.transformer)
    context = class_pipeline.with_plan(PLAN).own_settings.stored.calibrated_for
    replace(context, depth=7).stored(FixedExit(6), {}, {}).save(plan)
    with pytest.raises(InputError, match=r"exit_policy\.json is for a model of 7 layers, and this one has 5"):
        AdaDiffPipeline.from_pretrained(model, policy=plan)


def test_evaluation_goes_by_the_plan_of_another_folder_too(class_pipeline, tmp_path):
    model, plan = folder_of(class_pipeline, tmp_path)
    run(
        f"evaluate {model} -n 8 --data digits --features tests.comparison.conftest:Quadrants --out {tmp_path}/out "
        f"--policy {plan}"
    )
    assert asked(tmp_path / "out")[0] == 6


def test_demo_and_info_show_the_plan_of_another_folder(class_pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "width", 140)
    model, plan = folder_of(class_pipeline, tmp_path)
    run(f"demo --model {model} --policy {plan} -n 3 --out {tmp_path}/demo")
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "adaptive" in line)
    assert [cell.strip() for cell in row.split("│")[1:4]] == ["adaptive", "6", "64.4%"]  # as `adadiff sample` prints
    run(f"info {model} --policy {plan}")
    printed = capsys.readouterr().out
    assert "the model's own" in printed
    assert PLAN.guidance.in_words in printed


def test_an_exported_model_keeps_its_plans(class_pipeline, tmp_path):
    model, plan = folder_of(class_pipeline, tmp_path)
    (plan / "exit_policy.json").rename(model / "exit_policy.json")
    (model / "exit_policy-0.4.json").write_bytes((model / "exit_policy.json").read_bytes())
    run(f"export {model} {tmp_path}/exported")
    own = AdaDiffPipeline.from_pretrained(tmp_path / "exported").own_settings
    assert (own.stored.plan, own.others["exit_policy-0.4.json"].plan, own.defaults) == (PLAN, PLAN, None)


def test_internal_guidance_takes_the_place_of_the_plans_with_a_warning(class_pipeline, tmp_path, capsys):
    model, plan = folder_of(class_pipeline, tmp_path)
    run(f"sample {model} -n 3 --out {tmp_path}/out --policy {plan} --internal-guidance 2 1.5")
    guidance = asked(tmp_path / "out")[3]
    assert guidance["internal"] == {"layer": 2, "weight": 1.5, "interval": [0.0, 0.5]}
    assert "internal guidance InternalGuidance(layer=2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(f"sample {model} -n 3 --out {tmp_path}/wrong --internal-guidance 5 1.5")
    assert "layers before the last are 1 to 4" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()

"""`adadiff demo` and `adadiff export`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from adadiff import AdaDiffPipeline, CorrectedScheduleExit
from adadiff.cli.demo import DEMO_TASKS
from adadiff.sampling import Guidance, InternalGuidance, SamplingPlan
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.sampling.plan import PlanContext
from adadiff.training.presets import PRESETS
from adadiff.utils.files import PRETRAINED, weights_checksum
from tests.cli.conftest import run


def test_demo_and_export(model_folder, tmp_path, capsys):
    run(f"export {model_folder} {tmp_path}/half")
    half = tmp_path / "half/transformer/diffusion_pytorch_model.safetensors"
    whole = model_folder / "transformer/diffusion_pytorch_model.safetensors"
    assert half.stat().st_size < 0.65 * whole.stat().st_size
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "half").rglob("*.json"))
    for _ in range(2):
        run(f"demo --model {tmp_path}/half --out {tmp_path}/demo -n 3 --steps 2 --tau 0.5")
    table = capsys.readouterr().out
    assert all(word in table for word in ("layers", "compute", "seconds", "speedup", "difference", "adaptive"))
    with Image.open(tmp_path / "demo/demo.png") as picture:
        assert picture.width > 100


def test_a_tuned_plan_is_shown_beside_what_it_was_searched_against(tmp_path, capsys):
    run(f"export digits {tmp_path}/model")
    folder = tmp_path / "model"
    pipeline = AdaDiffPipeline.from_pretrained(folder, own_settings=False)
    tuned = SamplingPlan(2, CorrectedScheduleExit((17, 1)), scheduler="dpm-solver++", spacing="leading")
    full = SamplingPlan(4, scheduler="ddim", spacing="leading")
    best = replace(full, guidance=Guidance(internal=InternalGuidance(5, 1.5)))
    found = {"default": {"plan": full.describe()}, "full_model_at_its_best": {"plan": best.describe()}}
    weights = weights_checksum(folder / "transformer")
    PlanContext.of(tuned, weights, 17, "dpm-solver++", 2).stored(tuned.policy, {"compute": 0.45}, found).save(folder)
    run(f"demo --model {folder} -n 2 --out {tmp_path}/demo")
    full_row, best_row, tuned_row = (row for row in capsys.readouterr().out.splitlines() if row.startswith("│"))
    parts = pipeline.transformer.part_flops
    assert full_row.split()[1:5] == ["full", "│", "4", "│"]
    assert best_row.split()[1:5] == ["best", "full", "│", "4"]
    assert tuned_row.split()[1:4] == ["tuned", "│", "2"]
    assert f"{tuned.flops(parts) / full.flops(parts):.1%}" in tuned_row
    run(f"demo --model {folder} -n 2 --tau 0 --steps 2 --out {tmp_path}/demo")
    assert "best full" not in capsys.readouterr().out


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_the_models_of_the_demo_come_with_the_package(task, tmp_path, capsys):
    run(f"demo --task {task} -n 2 --steps 2 --out {tmp_path}/demo")
    assert "2 images" in capsys.readouterr().out
    folder = PRETRAINED / DEMO_TASKS[task].model
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 10e6
    assert SamplingDefaults.load(folder) == PRESETS[folder.name].train.sampling

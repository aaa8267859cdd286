"""`adadiff demo` and `adadiff export`."""

from __future__ import annotations

import pytest
from PIL import Image

from adadiff.cli.demo import DEMO_TASKS
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.training.presets import PRESETS
from adadiff.utils.files import PRETRAINED
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


@pytest.mark.parametrize("task", DEMO_TASKS)
def test_the_models_of_the_demo_come_with_the_package(task, tmp_path, capsys):
    run(f"demo --task {task} -n 2 --steps 2 --out {tmp_path}/demo")
    assert "2 images, 2 steps" in capsys.readouterr().out
    folder = PRETRAINED / DEMO_TASKS[task].model
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 10e6
    assert SamplingDefaults.load(folder) == PRESETS[folder.name].train.sampling

"""Commands on stock diffusers pipelines: a folder in, a policy and images out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import adadiff
from adadiff.cli.stock import stock_conditions
from adadiff.stock import StockPolicy
from adadiff.utils.errors import InputError
from adadiff.utils.files import PRETRAINED
from tests.cli.conftest import files, run
from tests.stock.tiny import build

CALL = "--steps 6 --guidance-scale 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock pipeline's folder, calibrated."""
    folder = tmp_path_factory.mktemp("stock")
    pipe = build("dit").pipe
    pipe.register_to_config(id2label={"1": "cat, tomcat", "2": "dog"})
    pipe.save_pretrained(folder)
    run(f"calibrate {folder} --compute 0.6 --samples 8 {CALL}")
    return folder


def sampled(folder: Path) -> torch.Tensor:
    """The images of a folder, by number."""
    pixels = [torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8) for path in images_in(folder)]
    return torch.stack(pixels).float()


def images_in(folder: Path) -> list[Path]:
    """The files of a folder's images, in order."""
    return sorted(folder.glob("0*.png"))


def test_calibrating_writes_the_policy_and_its_plot(folder: Path):
    stored = StockPolicy.from_pretrained(folder)
    assert stored.goal == {"compute": 0.6}
    assert stored.found["compute"] == pytest.approx(0.6, abs=0.06)  # of six steps
    assert stored.calibrated_for.arguments == {"num_inference_steps": 6, "guidance_scale": 2.0}
    assert (folder / "calibration.png").stat().st_size > 10_000
    assert not (folder / ".calibration").exists()


def test_the_number_of_steps_is_chosen_too(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "steps"
    run(f"calibrate {folder} --compute 0.6 --samples 8 {CALL} --reference-steps 20 --out {out}")
    assert "error against 20 steps with all layers" in capsys.readouterr().out
    stored = StockPolicy.from_pretrained(out)
    steps = stored.calibrated_for.arguments["num_inference_steps"]
    assert stored.goal["compute"] * steps == pytest.approx(0.6 * 6)
    assert len(stored.policy.layers) == steps


def test_samples_are_those_of_the_enabled_pipeline(folder: Path, tmp_path: Path):
    run(f"sample {folder} --out {tmp_path}/out -n 3 --batch-size 2 --seed 5")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    adadiff.enable(pipe, folder)
    arguments = {"num_inference_steps": 6, "guidance_scale": 2.0, "output_type": "pil"}
    alone = pipe(class_labels=[1], generator=torch.Generator().manual_seed(7), **arguments).images[0]  # number 2
    wanted = torch.frombuffer(bytearray(alone.tobytes()), dtype=torch.uint8).float()
    got = sampled(tmp_path / "out")
    assert got.shape[0] == 3
    assert (got[2] - wanted).abs().max() <= 1
    assert (got[1] - wanted).abs().max() > 1
    trace = json.loads((tmp_path / "out/trace.json").read_text())
    assert [call["layers"] for call in trace["calls"]] == list(StockPolicy.load(folder).policy.layers)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"exits.png", "grid.png", "request.json"}


def test_an_interrupted_sampling_goes_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(f"sample {folder} --out {tmp_path}/out -n 3")
    before = files(tmp_path / "out")
    images_in(tmp_path / "out")[1].unlink()
    run(f"sample {folder} --out {tmp_path}/out -n 3")
    after = files(tmp_path / "out")
    assert [after[path] == before[path] for path in images_in(tmp_path / "out")][::2] == [True, True]
    run(f"sample {folder} --out {tmp_path}/out -n 3")  # nothing is left to do
    assert files(tmp_path / "out") == after
    assert "3 images in" in capsys.readouterr().out


def test_classes_layers_and_the_full_model_can_be_chosen(folder: Path, tmp_path: Path):
    run(f"sample {folder} --out {tmp_path}/dogs -n 2 --class dog --exit-layer 2 {CALL}")
    request = json.loads((tmp_path / "dogs/request.json").read_text())
    assert request["conditions"] == [2]
    assert {call["layers"] for call in json.loads((tmp_path / "dogs/trace.json").read_text())["calls"]} == {2}
    run(f"sample {folder} --out {tmp_path}/full -n 2 --class-index 2 --tau 0 {CALL}")
    assert {call["layers"] for call in json.loads((tmp_path / "full/trace.json").read_text())["calls"]} == {4}


@pytest.mark.parametrize("rule", ["--tau 0", "--exit-layer 2", "--policy {folder} --tau 0"])
def test_the_stored_policy_gives_the_arguments_by_whatever_rule_samples_exit(folder: Path, tmp_path: Path, rule: str):
    run(f"sample {folder} --out {tmp_path}/own -n 1 {rule.format(folder=folder)}")
    stored = StockPolicy.load(folder).calibrated_for.arguments
    assert json.loads((tmp_path / "own/request.json").read_text())["arguments"] == stored
    run(f"sample {folder} --out {tmp_path}/given -n 1 {rule.format(folder=folder)} --steps 2")
    given = {**stored, "num_inference_steps": 2}
    assert json.loads((tmp_path / "given/request.json").read_text())["arguments"] == given


def test_the_scheduler_is_the_one_that_the_policy_was_calibrated_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(f"calibrate {folder} --compute 0.6 --samples 8 {CALL} --scheduler dpm-solver++ --out {tmp_path}/policy")
    shutil.copytree(folder, tmp_path / "model")
    shutil.copy(tmp_path / "policy/exit_policy.json", tmp_path / "model")
    run(f"sample {tmp_path}/model --out {tmp_path}/own -n 1")
    run(f"sample {folder} --policy {tmp_path}/policy --out {tmp_path}/named -n 1 --tau 0")
    run(f"demo --model {tmp_path}/model --out {tmp_path}/demo -n 2")
    assert "the policy was calibrated for" not in capsys.readouterr().err
    stored = StockPolicy.load(tmp_path / "policy").calibrated_for
    assert stored.scheduler == "DPMSolverMultistepScheduler"
    for out in ("own", "named"):
        request = json.loads((tmp_path / out / "request.json").read_text())
        assert (request["scheduler"], request["scheduler_config"]) == (stored.scheduler, stored.scheduler_settings)
    run(f"sample {tmp_path}/model --out {tmp_path}/given -n 1 --scheduler euler")
    assert json.loads((tmp_path / "given/request.json").read_text())["scheduler"] == "EulerDiscreteScheduler"
    assert "scheduler EulerDiscreteScheduler in place of DPMSolver" in capsys.readouterr().err


def test_the_settings_of_the_scheduler_are_those_of_the_policy(folder: Path, tmp_path: Path):
    stored = StockPolicy.load(folder)
    settings = {**stored.calibrated_for.scheduler_settings, "timestep_spacing": "trailing"}
    replace(stored, calibrated_for=replace(stored.calibrated_for, scheduler_settings=settings)).save(tmp_path)
    run(f"sample {folder} --policy {tmp_path} --out {tmp_path}/out -n 1")
    assert json.loads((tmp_path / "out/request.json").read_text())["scheduler_config"] == settings


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DiTPipeline", {}, "the stored scheduler 'DiTPipeline' is none of diffusers"),
        ("NoSuchScheduler", {}, "the stored scheduler 'NoSuchScheduler' is none of diffusers"),
        ("DDIMScheduler", {"num_train_timesteps": "x"}, "DDIMScheduler does not take its stored settings"),
    ],
)
def test_a_stored_scheduler_that_diffusers_cannot_build_is_one_line(
    folder: Path, tmp_path: Path, name: str, settings: Any, message: str, capsys: pytest.CaptureFixture[str]
):
    stored = StockPolicy.load(folder)
    made_for = replace(stored.calibrated_for, scheduler=name, scheduler_settings=settings)
    replace(stored, calibrated_for=made_for).save(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run(f"sample {folder} --policy {tmp_path} --out {tmp_path}/out -n 1")
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_an_adapted_pipeline_takes_thresholds(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(f"adapt {folder} --out {tmp_path}/adapted --samples 2 --batch-size 2 {CALL}")
    run(f"adapt {folder} --out {tmp_path}/as-the-policy --samples 2 --batch-size 2")
    given, stored = (load_file(tmp_path / name / "adaptation.safetensors") for name in ("adapted", "as-the-policy"))
    assert given.keys() == stored.keys()
    assert all(torch.equal(given[name], stored[name]) for name in given)
    sampling = f"sample {folder} --adaptation {tmp_path}/adapted -n 2 {CALL}"
    run(f"{sampling} --out {tmp_path}/all --tau 1")
    assert {call["layers"] for call in json.loads((tmp_path / "all/trace.json").read_text())["calls"]} == {1}
    run(f"{sampling} --out {tmp_path}/none --tau 1e-12")
    run(f"sample {folder} -n 2 {CALL} --tau 0 --out {tmp_path}/full")
    assert torch.equal(sampled(tmp_path / "none"), sampled(tmp_path / "full"))
    with pytest.raises(SystemExit, match="2"):
        run(f"adapt {folder} --out {tmp_path}/adapted")
    assert "already holds an adaptation.safetensors" in capsys.readouterr().err


def test_the_demo_compares_the_same_noise(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(f"demo --model {folder} --out {tmp_path}/demo -n 2")
    assert (tmp_path / "demo/demo.png").stat().st_size > 10_000
    table = capsys.readouterr().out
    assert "2 images" in table
    assert f"{StockPolicy.load(folder).found['compute']:.1%}" in table


def test_without_a_policy_each_command_advises_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = tmp_path / "model"
    build("dit").pipe.save_pretrained(model)
    advice = f"{model} holds no exit_policy.json: make one with adadiff calibrate {model} --compute 0.55"
    for words, more in (
        (f"demo --model {model} --out {tmp_path}/out", ""),
        (f"sample {model} --out {tmp_path}/out", ", name another by --policy, or run all layers with --tau 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run(words)
        assert capsys.readouterr().err == f"adadiff: {advice}{more}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample {folder} --out {out} --tau 0.3", "holds no adaptation.safetensors: make one with adadiff adapt"),
        ("export {folder} {out}", "is a pipeline of diffusers' own: load it by DiffusionPipeline.from_pretrained"),
        ("adapt digits", "is a model of adadiff's own"),
        ("adapt cifar10-dit", "say where the adaptation goes, with --out FOLDER"),
        ("calibrate cifar10-dit --compute 0.6", "say where the policy goes, with --out FOLDER"),
        ("sample {folder} --out {out} --patience 2", "--patience is for models of adadiff's own"),
        ("sample {folder} --out {out} --class fox", "there is no class 'fox': the pipeline names cat, dog, tomcat"),
        ("sample {folder} --out {out} --class-index 1 3", "there is no class 3: the pipeline has classes 1 to 2"),
        ("sample digits-dit --out {out} --class-index 99", "there is no class 99: the pipeline has classes 0 to 9"),
        ("sample {folder} --out {out} --prompt fox", "DiTPipeline takes classes and no prompts"),
        ("sample {folder} --out {out} --argument steps", "--argument steps: write name=value"),
        ("sample {folder} --out {out} --argument colour=red", "DiTPipeline takes no argument colour"),
        ("sample {folder} --out {out} --policy {out}", "there is no folder"),
        ("demo --model {folder} --out {out} --tau 0.3", "--tau and --min-layer are for models of adadiff's own"),
        ("calibrate {folder} --compute 0.6", "already holds an exit_policy.json"),
        ("calibrate {folder} --compute 0.01 --replace", "no policy takes less than"),
        ("calibrate {folder} --compute 0.6 --steps 6 --reference-steps 6 --replace", "above the number of steps, 6"),
        ("calibrate some/one --compute 0.6", "say where the policy goes, with --out FOLDER"),
        ("sample some/one --out {out}", "there is no folder some/one, and model_index.json of that name cannot be had"),
        ("demo --model some/one --out {out}", "there is no folder some/one, and model_index.json of that name cannot"),
        ("sample {folder} --out {out} --policy some/one", "there is no folder some/one, and exit_policy.json of that"),
        ("sample some/one --out {out} --policy {out}", "there is no folder"),
        ("sample some/one --out {out} --tau 0.3 --adaptation {out}", "/out holds no adaptation.safetensors"),
        ("sample some/one --out {out} --argument steps", "--argument steps: write name=value"),
        ("calibrate digits --compute 0.6 --argument a=1 --out {out}", "--argument is for stock pipelines"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    folder: Path,
    tmp_path: Path,
    words: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr("adadiff.utils.hub.get_hf_file_metadata", unreachable)
    before = files(folder)
    with pytest.raises(SystemExit, match="2"):
        run(words.format(folder=folder, out=tmp_path / "out"))
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert files(folder) == before
    assert not images_in(tmp_path / "out")


def test_a_pipeline_without_names_has_the_classes_of_its_transformer():
    pipe = build("dit").pipe
    assert stock_conditions(pipe, (), (), (0, 999)) == [0, 999]
    with pytest.raises(InputError, match="no class 1000: the pipeline has classes 0 to 999"):
        stock_conditions(pipe, (), (), (1000,))  # which stands for none


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample {unet} --out {out} -n 1", "DDPMPipeline has a U-Net, and adadiff cuts transformers alone"),
        ("sample {unet} --out {out} --prompt boat --tau 0", "DDPMPipeline has a U-Net"),
        ("demo --model {unet} --out {out}", "DDPMPipeline has a U-Net"),
        ("calibrate {unet} --compute 0.6", "DDPMPipeline has a U-Net"),
        ("adapt {unet}", "DDPMPipeline has a U-Net"),
        ("tune {unet} --compute 0.6 --data digits", "DDPMPipeline has a U-Net"),
        ("evaluate {unet} --data digits --out {out}", "is a pipeline of diffusers' own"),
        ("serve {unet}", "it is a stock diffusers pipeline (DDPMPipeline)"),
    ],
)
def test_a_pipeline_with_a_unet_is_refused_in_one_line(
    tmp_path: Path, words: str, message: str, capsys: pytest.CaptureFixture[str]
):
    sizes = {"block_out_channels": (8,), "norm_num_groups": 2, "layers_per_block": 1}
    unet = diffusers.UNet2DModel(8, 1, 1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), **sizes)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "unet")
    before = files(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run(words.format(unet=tmp_path / "unet", out=tmp_path / "out"))
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert files(tmp_path) == before


def test_a_unet_is_refused_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))  # without its parts
    with pytest.raises(SystemExit, match="2"):
        run(f"calibrate {tmp_path} --compute 0.6")
    assert capsys.readouterr().err == (
        "adadiff: StableDiffusionPipeline has a U-Net, and adadiff cuts transformers alone\n"
    )


@pytest.mark.parametrize(
    ("name", "condition", "size"),
    [("digits-dit", "--class-index 3", 8), ("cifar10-dit", "--class cat", 32), ("emoji-pixart", "--prompt apple", 32)],
)
def test_packaged_pipelines_sample_by_the_policy_they_come_with(
    name: str, condition: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run(f"sample {name} {condition} -n 1 --out {tmp_path}/out")
    layers = StockPolicy.load(PRETRAINED / name).policy.layers
    assert f"layers run {sum(layers) / (max(layers) * len(layers)):.1%}" in capsys.readouterr().out
    (image,) = (Image.open(path) for path in images_in(tmp_path / "out"))
    assert image.size == (size, size)

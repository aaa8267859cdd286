"""The command line: what it does, and one clear line for bad input with nothing written."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

import adadiff
from adadiff import AdaDiffPipeline, cli
from adadiff.cli import DEMO_TASKS, main
from adadiff.evaluation.small_network import SmallNetwork
from adadiff.files import MODELS
from adadiff.presets import PRESETS
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.training.config import DiffusionConfig
from tests.conftest import make_model

DIGITS = MODELS / "digits"
TINY = "--model.patch-size 4 --model.width 16 --model.depth 3 --model.num-heads 2 --mixed-precision no --batch-size 4"


def run(*words: str) -> None:
    main([word for text in words for word in text.split()])


def files(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_train_and_sample_a_folder_of_images(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(4):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (12, 10), (60 * k, 90, 90)).save(tmp_path / f"photos/{k}.jpg")
    (tmp_path / "photos/4.jpg").write_bytes(b"not a picture")
    run("train images --data.source photos --data.size 8 --data.on-error skip --steps 3 --out run", TINY)
    printed = capsys.readouterr().out
    assert "left out 1 unreadable images: " in printed
    assert "4.jpg" in printed
    assert "adadiff sample run" in printed
    saved = json.loads((tmp_path / "run/train.json").read_text())
    assert (saved["steps"], saved["data"]["size"], saved["model"]["width"]) == (3, 8, 16)
    run("sample run -n 3 --steps 2 --tau 0.9 --out samples --scheduler dpm-solver++")
    assert "3 images in samples" in capsys.readouterr().out
    assert len(list((tmp_path / "samples").glob("0*.png"))) == 3


def test_what_is_trained_on_and_left_out_is_printed_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, shade in (("cat/1.png", 0), ("cat/2.png", 90), ("[red] dog/1.png", 200)):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / "photos" / name)
    (tmp_path / "photos/cat/3.heic").write_bytes(b"")
    described = [
        "3 images of photos",
        "classes (2): [red] dog 1, cat 2",
        "left out 1 files of other types: cat/3.heic",
    ]
    run("train images --data.source photos --data.size 8 --model.condition class --steps 1 --out run", TINY)
    assert capsys.readouterr().out.splitlines()[:3] == described
    run("train images --data.source . --data.size 8 --steps 1 --out again", TINY)
    assert "left out 1 folders made by adadiff: run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "is not text in UTF-8"),
        (b"r\0e\0d\0", "null characters"),
        (b"\xef\xbb\xbf \n\n", "holds no prompts"),
        (None, "there is no file"),
    ],
)
def test_a_bad_file_of_prompts_is_named(text_pipeline, tmp_path, capsys, content, message):
    text_pipeline.save_pretrained(tmp_path / "model")
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(SystemExit):
        run(f"sample {tmp_path}/model -n 1 --steps 2 --prompts {tmp_path}/prompts.txt --out {tmp_path}/out")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prompts_are_the_same_in_every_unicode_encoding(tmp_path):
    text = "red apple\r\n\r\n  Caf\u00e9 \u2603\r\n"
    contents = (
        text.encode(),
        text.encode("utf-8-sig"),
        text.encode("utf-16"),
        text.replace("\r", "").encode(),
        b"\xef\xbb\xbfred apple\n" + "Caf\u00e9 \u2603".encode("utf-8-sig"),
    )
    for content in contents:
        (tmp_path / "prompts.txt").write_bytes(content)
        assert cli._prompts((), tmp_path / "prompts.txt") == ("red apple", "Caf\u00e9 \u2603")


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
    folder = MODELS / DEMO_TASKS[task].model
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 10e6
    assert SamplingDefaults.load(folder) == PRESETS[folder.name].train.sampling


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


def test_evaluate_and_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adadiff.evaluation.features.cache_folder", lambda: tmp_path / "cache")
    torch.manual_seed(0)
    SmallNetwork([str(k) for k in range(10)], width=1, sample_size=8).save_pretrained(tmp_path / "network")
    command = f"evaluate {DIGITS} --data digits --data.split test --features {tmp_path}/network --out {tmp_path}/out"
    with pytest.raises(SystemExit):
        run(command, "-n 8 --steps 2")
    assert "8 images are too few to judge by" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    run(command, "-n 10 --steps 2 --tau 0.4")
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "out/metrics.json").read_text())
    assert f"{figures['frechet']:.3f}" in printed
    assert figures["layer_fraction"] < 1
    assert figures["class_agreement"] is None
    run(command, "-n 10 --steps 2 --tau 0.4")
    again = json.loads((tmp_path / "out/metrics.json").read_text())
    assert again == figures


def test_packaged_models_go_by_name_in_every_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = files(MODELS)
    run("sample digits -n 2 --steps 2 --out samples")
    run("demo --model digits -n 2 --steps 2 --out demo")
    run("export digits own")
    run("convert digits digits.pth --to uvit")
    run("train digits --init-from digits --steps 1 --batch-size 2 --sample-every 0 --out run")
    run("calibrate own --compute 0.6 --steps 2 --samples 8")
    assert files(MODELS) == before
    run(f"sample {DIGITS} -n 2 --steps 2 --out samples")  # the same request: the folder is taken


def test_class_names_that_are_numbers_are_names(tmp_path):
    model = make_model(num_classes=5, class_names=["1", "10", "2", "3"], null_class=4)
    AdaDiffPipeline(model, DiffusionConfig().build()).save_pretrained(tmp_path / "model")
    run(f"sample {tmp_path}/model --class 1 10 -n 2 --steps 1 --out {tmp_path}/names")
    run(f"sample {tmp_path}/model --class-index 1 0 -n 2 --steps 1 --out {tmp_path}/indices")
    names, indices = (json.loads((tmp_path / f"{way}/request.json").read_text()) for way in ("names", "indices"))
    assert (names["conditions"]["classes"], indices["conditions"]["classes"]) == (["1", "10"], ["10", "1"])


def test_info(capsys):
    run("info imagenet256-uvit-l")
    printed = capsys.readouterr().out
    assert all(
        figure in printed for figure in ("286.8M", "152.91 GFLOP", "300,000 steps of 1024", "guidance scale 1.4")
    )


def test_version_and_help():
    for words, wanted in ((["--version"], adadiff.__version__), ([], "train"), (["sample", "--help"], "--tau")):
        done = subprocess.run([sys.executable, "-m", "adadiff", *words], capture_output=True, text=True)
        assert done.returncode == 0
        assert wanted in done.stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train digit", "did you mean digits"),
        ("info cifar10", "did you mean cifar10-"),
        ("demo --task digit --out {tmp}/d", "did you mean digits"),
        ("train images --data.source ./missing --out {tmp}/run", "no file or folder"),
        ("train images --data.source {tmp}/empty --out {tmp}/run", "empty"),
        ("train images --data.source {tmp}/tiny --data.size 8 --out {tmp}/run", "smaller than a patch"),
        ("train images --data.source {tmp}/broken --out {tmp}/run", "cannot read the image"),
        ("train digits --out {tmp}/other", "already holds other files"),
        ("train digits --batch-size 0 --out {tmp}/run", "batch_size is 0"),
        ("train digits --resume --out {tmp}/run", "no run to resume"),
        ("sample {tmp}/missing --out {tmp}/s", "no model folder"),
        ("sample {tmp}/other --out {tmp}/s", "not a model folder"),
        ("sample {tmp}/truncated --out {tmp}/s", "truncated or altered"),
        ("sample {tmp}/deeper --out {tmp}/s", "do not fit"),
        ("sample {model} --tau 1.5 --out {tmp}/s", "tau is 1.5: it must be less than or equal to 1"),
        ("sample {model} --tau -0.1 --out {tmp}/s", "tau is -0.1"),
        ("sample {model} --tau 0.1 0.2 --out {tmp}/s", "one per step, 50"),
        ("sample {model} --tau 0.1 0.2 --tau-per layer --out {tmp}/s", "one per layer, 5"),
        ("sample {model} --batch-size 0 --out {tmp}/s", "batch_size is 0"),
        ("sample {model} -n 0 --out {tmp}/s", "n is 0"),
        ("sample {model} --class 1 --out {tmp}/s", "takes no class labels"),
        ("sample {model} --class-index 1 --out {tmp}/s", "takes no class labels"),
        ("sample {model} --prompt rocket --out {tmp}/s", "takes no prompts"),
        ("sample {model} --guidance-scale 2 --out {tmp}/s", "neither classes nor prompts"),
        ("sample {classes} --class 1 --out {tmp}/s", "no class named '1' (choose one of cat, dog, owl): to ask for"),
        ("sample {classes} --class-index 7 --out {tmp}/s", "0 to 2"),
        ("sample {classes} --class-index 3 --out {tmp}/s", "class 3 stands for no class"),
        ("sample {classes} --class cat --class-index 1 --out {tmp}/s", "not both"),
        ("sample {classes} --class dgo --out {tmp}/s", "did you mean dog"),
        ("sample {classes} --guidance-scale 0.5 --out {tmp}/s", "guidance_scale is 0.5"),
        ("sample {text} --out {tmp}/s", "needs a prompt"),
        ("sample {text} --prompts {tmp}/empty.txt --out {tmp}/s", "holds no prompts"),
        ("sample {text} --prompt a --prompts {tmp}/empty.txt --out {tmp}/s", "not both"),
        ("sample {text} --prompt a --prompt b --out {tmp}/s", "--prompt is given 2 times"),
        ("sample {model} --scheduler dimm --out {tmp}/s", "did you mean ddim"),
        ("sample {model} --exit-layer 9 --out {tmp}/s", "numbered 1 to 5"),
        ("sample {model} --out {tmp}/other", "already holds other files"),
        ("sample {model} --device cudda --out {tmp}/s", "no device"),
        ("evaluate {model} --data ./missing --out {tmp}/s", "no file or folder"),
        ("evaluate {model} --data digits --features smal --out {tmp}/s", "no feature network"),
        ("demo --model {model} --out {tmp}/other", "already holds other files"),
        ("demo --model {model} -n 0 --out {tmp}/d", "n is 0"),
        ("export {model} {tmp}/other", "already holds other files"),
        ("sample {classes} --guidance-scale nan --out {tmp}/s", "guidance_scale is nan"),
        ("sample {model} --guidance-interval 0.2 nan --out {tmp}/s", "guidance_interval is nan"),
        ("sample {model} --tau nan --out {tmp}/s", "tau is nan"),
        ("sample {model} --seed -1 --out {tmp}/s", "seed is -1"),
        ("sample {model} --seed 99999999999999999999999 --out {tmp}/s", "seed is 99999999999999999999999"),
        ("sample {model} --steps 0 --out {tmp}/s", "steps is 0"),
        ("sample {model} --steps 1001 --out {tmp}/s", "between 1 and 1000"),
        ("sample {model} --min-layer 0 --out {tmp}/s", "min_layer is 0"),
        ("sample {model} --patience 0 --tau 0.1 --out {tmp}/s", "patience is 0"),
        ("sample digit --out {tmp}/s", "did you mean digits"),
        ("evaluate {model} --data digits --batch-size -3 --out {tmp}/s", "batch_size is -3"),
        ("demo --model {model} --tau nan --out {tmp}/d", "tau is nan"),
        ("encode {tmp}/latents --vae none --scaling-factor 0", "scaling_factor is 0"),
        ("encode {tmp}/latents --vae none --batch-size 0", "batch_size is 0"),
        ("calibrate digits --compute 0.5", "adadiff export digits FOLDER"),
        ("calibrate {model} --compute 0.5 --samples 0", "samples is 0"),
        ("calibrate {model} --compute 0.5 --confidence nan", "between 0 and 1"),
        ("calibrate {model} --speedup nan", "the speedup is nan"),
        ("calibrate {model} --compute 0.5 --seed -1", "seed is -1"),
        ("calibrate {model}", "one of compute, error and speedup"),
        ("calibrate {model} --compute 2", "between 0 and 1"),
        ("calibrate {model} --error 0.01 --samples 20", "take at least"),
        ("calibrate {text} --compute 0.5", "needs a prompt"),
        ("calibrate {model} --compute 0.5 --metric lpips", "write package.module:name"),
        ("calibrate {model} --compute 0.5 --metric math:pi", "the metric is 3.14"),
        ("calibrate {model} --compute 0.5 --metric torch:dist", "gave () losses for 2 images"),
        ("calibrate {model} --compute 0.5 --metric no.such:thing", "there is no 'thing' in a module 'no.such'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    model_folder, pipeline, class_pipeline, text_pipeline, tmp_path, capsys, command, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    for name, size in (("tiny", (3, 3)), ("broken", (9, 9))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / "a.png")
    (tmp_path / "broken/a.png").write_bytes(b"not a picture")
    for name in ("truncated", "deeper"):
        pipeline.save_pretrained(tmp_path / name)
    weights = tmp_path / "truncated/transformer/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    config = tmp_path / "deeper/transformer/config.json"
    config.with_name("SHA256SUMS").unlink()
    config.write_text(config.read_text().replace('"depth": 5', '"depth": 7'))
    class_pipeline.save_pretrained(tmp_path / "classes")
    text_pipeline.save_pretrained(tmp_path / "text")
    (tmp_path / "empty.txt").touch()
    before = files(tmp_path)
    capsys.readouterr()

    with pytest.raises(SystemExit) as stop:
        run(command.format(tmp=tmp_path, model=model_folder, classes=tmp_path / "classes", text=tmp_path / "text"))
    *progress, error = capsys.readouterr().err.removesuffix("\n").replace("\r", "\n").split("\n")
    assert stop.value.code == 2
    assert error.startswith("adadiff: ")
    assert message in error
    assert all("it/s" in line or "/s]" in line or not line.strip() for line in progress)
    assert files(tmp_path) == before


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(adadiff.InputError):
        run(f"--debug sample {tmp_path}/missing --out {tmp_path}/s")

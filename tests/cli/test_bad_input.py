"""Bad input to any command is one clear line, and nothing is written."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.cli.conftest import files, run


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
        ("sample {classes} --class 1 --out {tmp}/s", "no class named '1' (choose one of cat, dog, owl): to request"),
        ("sample {classes} --class-index 7 --out {tmp}/s", "0 to 2"),
        ("sample {classes} --class-index 3 --out {tmp}/s", "class 3 is the null class"),
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
        ("sample {model} --argument a=1 --out {tmp}/s", "--argument is for stock pipelines"),
        (
            "sample {model} --policy {tmp}/none --out {tmp}/s",
            "/none holds no exit_policy.json: make one with adadiff calibrate MODEL --out ",
        ),
        ("calibrate {model} --compute 0.5 --out {model}/model_index.json", "model_index.json is a file: name a folder"),
        ("calibrate digits --compute 0.5 --out {model}", "is a model's folder: leave --out out"),
        ("calibrate digits --compute 0.5", "say where the policy goes, with --out FOLDER"),
        ("calibrate {model} --compute 0.5 --samples 0", "samples is 0"),
        ("calibrate {model} --compute 0.5 --confidence nan", "between 0 and 1"),
        ("calibrate {model} --speedup nan", "the speedup is nan"),
        ("calibrate {model} --compute 0.5 --seed -1", "seed is -1"),
        ("calibrate {model}", "one of compute, error and speedup"),
        ("calibrate {model} --compute 2", "between 0 and 1"),
        ("calibrate {model} --error 0.01 --samples 20", "calibrate on at least"),
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

"""Sampling into a folder."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from adadiff import InputError, NeverExit, ThresholdExit
from adadiff.cli import main
from adadiff.sampling import Conditions
from adadiff.sampling.folder import sample_to_folder

POLICY = ThresholdExit(0.55)


def pixels(folder, k):
    with Image.open(folder / f"{k:06d}.png") as image:
        return np.array(image).astype(int)


def test_images_do_not_depend_on_the_batch_size_nor_on_stops(pipeline, tmp_path):
    whole = sample_to_folder(pipeline, tmp_path / "whole", 7, 3, POLICY, batch_size=7)
    sample_to_folder(pipeline, tmp_path / "parts", 2, 3, POLICY, batch_size=1)
    parts = sample_to_folder(pipeline, tmp_path / "parts", 7, 3, POLICY, batch_size=3)
    assert (whole.sampled, parts.sampled) == (7, 5)
    for k in range(7):
        assert abs(pixels(tmp_path / "whole", k) - pixels(tmp_path / "parts", k)).max() <= 1
    assert torch.equal(whole.trace.exit_layers, parts.trace.exit_layers)
    assert torch.equal(whole.trace.flops, parts.trace.flops)
    assert np.abs(pixels(tmp_path / "whole", 0) - pixels(tmp_path / "whole", 1)).max() > 1


def test_the_trace_file_is_the_pipelines_trace(pipeline, tmp_path):
    from adadiff.seeding import generator_for

    summary = sample_to_folder(pipeline, tmp_path, 4, 3, POLICY, seed=9)
    trace = pipeline(4, num_inference_steps=3, policy=POLICY, generator=[generator_for(9, k) for k in range(4)]).trace
    saved = json.loads((tmp_path / "trace.json").read_text())
    assert saved["exit_layers"] == trace.exit_layers.tolist()
    assert saved["flops"] == trace.flops.tolist()
    assert saved["timesteps"] == list(trace.timesteps)
    assert summary.trace.compute_fraction == trace.compute_fraction
    assert saved["request"]["policy"]["tau"] == 0.55
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*(f"{k:06d}.png" for k in range(4)), "grid.png", "exits.png", "trace.json", "request.json"}


def test_an_interrupted_sampling_goes_on_with_what_is_missing(pipeline, tmp_path, monkeypatch):
    calls = []
    call = type(pipeline).__call__

    def interrupt_the_second(self, *args, **kwargs):
        calls.append(kwargs["batch_size"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, *args, **kwargs)

    monkeypatch.setattr(type(pipeline), "__call__", interrupt_the_second)
    with pytest.raises(KeyboardInterrupt):
        sample_to_folder(pipeline, tmp_path, 6, 2, POLICY, batch_size=2)
    assert len(list(tmp_path.glob("0*.png"))) == 2
    assert sample_to_folder(pipeline, tmp_path, 6, 2, POLICY, batch_size=2).sampled == 4
    assert calls == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"steps": 4}, "steps = 3, not 4"),
        ({"policy": NeverExit()}, "policy"),
        ({"n": 0}, "number of images"),
        ({"batch_size": 0}, "batch size"),
        ({"conditions": Conditions(classes=(1,))}, "takes no class labels"),
    ],
)
def test_another_request_for_the_same_folder_is_refused(pipeline, tmp_path, changes, message):
    settings = {"n": 2, "steps": 3, "policy": POLICY}
    sample_to_folder(pipeline, tmp_path, **settings)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message):
        sample_to_folder(pipeline, tmp_path, **{**settings, **changes})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_with_other_files_is_left_alone(pipeline, tmp_path):
    (tmp_path / "000000.png").write_text("mine")
    with pytest.raises(InputError, match="already holds other files"):
        sample_to_folder(pipeline, tmp_path, 2, 3, POLICY)
    assert (tmp_path / "000000.png").read_text() == "mine"


def test_classes_by_name_and_by_number_are_the_same_request(class_pipeline, tmp_path):
    first = sample_to_folder(class_pipeline, tmp_path, 3, 2, POLICY, conditions=Conditions(("dog", 0)))
    again = sample_to_folder(class_pipeline, tmp_path, 3, 2, POLICY, conditions=Conditions((1, "cat")))
    assert (first.sampled, again.sampled) == (3, 0)
    assert again.seconds == first.seconds > 0
    assert again.images_per_second == 3 / first.seconds
    sample_to_folder(class_pipeline, tmp_path / "null", 1, 2, POLICY, conditions=Conditions((3,)))
    assert json.loads((tmp_path / "null/request.json").read_text())["conditions"]["classes"] == [3]


def test_an_image_that_is_not_a_number_is_named_and_not_written(pipeline, tmp_path):
    torch.nn.init.constant_(pipeline.transformer.backbone.head.linear.bias, torch.nan)
    with pytest.raises(InputError, match="image 0 came out as NaN"):
        sample_to_folder(pipeline, tmp_path, 2, 2, POLICY)
    assert not list(tmp_path.glob("0*.png"))


def test_two_processes_share_the_images(model_folder, tmp_path):
    words = f"{model_folder} -n 5 --steps 2 --tau 0.55 --batch-size 2 --device cpu --out"
    launch = "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    command = f"{launch} --dynamo_backend no --main_process_port 0 -m adadiff sample {words} {tmp_path}/two"
    done = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5 images in") == 1
    main(["sample", *words.split(), str(tmp_path / "one")])
    for k in range(5):
        assert abs(pixels(tmp_path / "one", k) - pixels(tmp_path / "two", k)).max() <= 1
    one, two = (json.loads((tmp_path / name / "trace.json").read_text()) for name in ("one", "two"))
    assert one == two

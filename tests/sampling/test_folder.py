"""Sampling into a folder."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from adadiff import AdaDiffPipeline, InputError, NeverExit, ThresholdExit
from adadiff.cli import main
from adadiff.conditioning import ByteTextEncoder
from adadiff.sampling import Conditions
from adadiff.sampling.folder import sample_to_folder
from adadiff.training.config import DiffusionConfig
from adadiff.utils.files import exclusive_folder
from tests.conftest import make_model

POLICY = ThresholdExit(0.55)


def pixels(folder, k):
    with Image.open(folder / f"{k:06d}.png") as image:
        return np.array(image).astype(int)


def lines(folder):
    return [json.loads(line) for line in (folder / "trace.jsonl").read_text().splitlines()]


def test_images_do_not_depend_on_the_batch_size_nor_on_stops(pipeline, tmp_path):
    whole = sample_to_folder(pipeline, tmp_path / "whole", 7, 3, POLICY, batch_size=7)
    sample_to_folder(pipeline, tmp_path / "parts", 2, 3, POLICY, batch_size=1)
    parts = sample_to_folder(pipeline, tmp_path / "parts", 7, 3, POLICY, batch_size=3)
    assert (whole.sampled, parts.sampled) == (7, 5)
    for k in range(7):
        assert abs(pixels(tmp_path / "whole", k) - pixels(tmp_path / "parts", k)).max() <= 1
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    assert torch.equal(whole.totals.exits, parts.totals.exits)
    assert np.abs(pixels(tmp_path / "whole", 0) - pixels(tmp_path / "whole", 1)).max() > 1


def test_the_trace_file_is_the_pipelines_trace(pipeline, tmp_path):
    from adadiff.utils.seeding import generator_for

    summary = sample_to_folder(pipeline, tmp_path, 4, 3, POLICY, seed=9)
    trace = pipeline(
        batch_size=4, num_inference_steps=3, policy=POLICY, generator=[generator_for(9, k) for k in range(4)]
    ).trace
    saved = json.loads((tmp_path / "trace.json").read_text())
    assert saved["flops"] == int(trace.flops.sum())
    assert saved["timesteps"] == list(trace.timesteps)
    assert saved["exits"] == [[(step == layer).sum().item() for layer in range(1, 6)] for step in trace.exit_layers]
    assert saved["mean_exit_layers"] == trace.exit_layers.double().mean(1).tolist()
    assert (saved["images"], saved["predictions"]) == (4, 12)
    assert summary.totals.compute_fraction == saved["compute_fraction"] == trace.compute_fraction
    assert saved["request"]["policy"]["tau"] == 0.55
    for k, line in enumerate(lines(tmp_path)):
        assert (line["image"], line["exit_layers"]) == (k, trace.exit_layers[:, k].tolist())
        assert line["flops"] == trace.flops[:, k].tolist()
        assert line["unconditional_exit_layers"] == [0, 0, 0]
    own = {"grid.png", "exits.png", "trace.json", "trace.jsonl", "request.json"}
    assert {path.name for path in tmp_path.iterdir()} == {*(f"{k:06d}.png" for k in range(4)), *own}


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
    with pytest.raises(InputError, match="class 3 is the null class"):
        sample_to_folder(class_pipeline, tmp_path / "null", 1, 2, POLICY, conditions=Conditions((3,)))
    assert not (tmp_path / "null").exists()


def test_an_image_that_is_not_a_number_is_named_and_none_of_its_batch_written(pipeline, tmp_path, monkeypatch):
    decode, batches = type(pipeline).decode, []

    def break_the_fourth(self, sample):
        batches.append(len(sample))
        images = decode(self, sample)
        if len(batches) == 2:
            images[1, 0, 0, 0] = torch.inf
        return images

    monkeypatch.setattr(type(pipeline), "decode", break_the_fourth)
    with pytest.raises(InputError, match="image 3 is NaN or infinite: try"):
        sample_to_folder(pipeline, tmp_path, 6, 2, POLICY, batch_size=2)
    assert [path.name for path in sorted(tmp_path.glob("0*.png"))] == ["000000.png", "000001.png"]


@pytest.mark.parametrize("damage", ["foreign", "another's trace", "cut off", "empty", "text"])
def test_a_damaged_or_foreign_image_is_named(pipeline, tmp_path, damage):
    sample_to_folder(pipeline, tmp_path / "out", 3, 2, POLICY)
    sample_to_folder(pipeline, tmp_path / "other", 2, 3, POLICY)
    path = tmp_path / "out/000001.png"
    if damage == "foreign":
        Image.new("L", (8, 8)).save(path)
    else:
        content = {"another's trace": (tmp_path / "other/000001.png").read_bytes(), "cut off": path.read_bytes()[:-30]}
        path.write_bytes(content.get(damage, b"" if damage == "empty" else b"no image"))
    with pytest.raises(InputError, match=r"000001\.png is damaged, or not an image of this run"):
        sample_to_folder(pipeline, tmp_path / "out", 3, 2, POLICY)
    assert not list((tmp_path / "out").glob(".trace*"))
    path.unlink()
    assert sample_to_folder(pipeline, tmp_path / "out", 3, 2, POLICY).sampled == 1


def test_a_folder_that_another_process_samples_into_is_refused(pipeline, tmp_path):
    with exclusive_folder(tmp_path / "out"), pytest.raises(InputError, match="another process is writing into"):
        sample_to_folder(pipeline, tmp_path / "out", 2, 2, POLICY)
    assert not any((tmp_path / "out").iterdir())
    sample_to_folder(pipeline, tmp_path / "out", 2, 2, POLICY)


def other_scheduler(pipe):
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, steps_offset=1)


def other_vae(pipe):
    pipe.vae.decoder.conv_out.bias.data += 1


def other_scaling(pipe):
    pipe.vae.register_to_config(scaling_factor=0.5)


def other_text_encoder(pipe):
    pipe.text_encoder.embed.weight.data[3] += 1


def other_weights(pipe):
    pipe.transformer.backbone.position.data += 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_scheduler, "scheduler_config.steps_offset = 0, not 1"),
        (other_vae, "vae.fingerprint"),
        (other_scaling, "vae.fingerprint"),
        (other_text_encoder, "text_encoder.fingerprint"),
        (other_weights, "model.fingerprint"),
    ],
)
def test_images_of_changed_parts_are_not_mixed(tmp_path, change, message):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = AutoencoderKL(out_channels=1, latent_channels=4, block_out_channels=(8,), norm_num_groups=4, **blocks)
    model = make_model(in_channels=4, context_dim=6, context_length=3)
    pipe = AdaDiffPipeline(model, DiffusionConfig().build(in_latents=True), ByteTextEncoder(width=6, length=3), vae)
    conditions = Conditions(prompts=("owl",))
    sample_to_folder(pipe, tmp_path, 2, 2, POLICY, conditions=conditions)
    assert sample_to_folder(pipe, tmp_path, 2, 2, POLICY, conditions=conditions).sampled == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    change(pipe)
    with pytest.raises(InputError, match=message):
        sample_to_folder(pipe, tmp_path, 3, 2, POLICY, conditions=conditions)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


MANY_IMAGES = """
import resource, sys
from pathlib import Path
import torch
from diffusers import DDIMScheduler
from adadiff import AdaDiffPipeline, AdaptiveModel, NeverExit
from adadiff.sampling.folder import sample_to_folder

torch.set_num_threads(1)
sizes = {"patch_size": 32, "width": 16, "depth": 1, "num_heads": 1, "final_conv": False}
model = AdaptiveModel(sample_size=128, in_channels=3, backbone_config=sizes).eval()
torch.nn.init.zeros_(model.backbone.head.linear.weight)  # of one colour: written in no time
pipeline = AdaDiffPipeline(model, DDIMScheduler(prediction_type="sample"))
out = Path(sys.argv[1])
sample_to_folder(pipeline, out / "few", 60, 1, NeverExit(), batch_size=8)
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
limit = int(status["VmData"].split()[0]) * 1024 + 50_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
print(sample_to_folder(pipeline, out / "many", 2000, 1, NeverExit(), batch_size=8).totals.images)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """2,000 images of 128x128 are 98 MB of pixels, and 50 MB more than 60 images took are allowed."""
    done = subprocess.run([sys.executable, "-c", MANY_IMAGES, tmp_path], capture_output=True, text=True)
    assert done.stdout == "2000\n", done.stderr[-2000:]
    assert len(lines(tmp_path / "many")) == 2000


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

"""The training loop: resuming, processes, interruption, disk trouble."""

import errno
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adadiff import AdaDiffPipeline, InputError
from adadiff.backbones import UViTConfig
from adadiff.cli import main
from adadiff.data import DataConfig
from adadiff.training import Diverged, checkpoints, train
from adadiff.training.config import ModelConfig, OptimizerConfig
from adadiff.training.objective import JointObjective
from tests.conftest import run_launched
from tests.training.conftest import tiny_config

TINY_MODEL = ("--model.patch-size", "4", "--model.width", "16", "--model.depth", "3", "--model.num-heads", "2")
TINY_TRAINING = ("--optimizer.warmup-steps", "2", "--batch-size", "8", "--sample-every", "0", "--log-every", "1")
TINY = ("train", "digits", "--mixed-precision", "no", *TINY_MODEL, *TINY_TRAINING)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "transformer" / "diffusion_pytorch_model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def scalars(run: Path, name: str) -> list[float]:
    log = EventAccumulator(str(run / "logs" / "tensorboard"))
    log.Reload()
    return [event.value for event in log.Scalars(name)]


def start(out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "adadiff", *TINY, "--out", str(out), *options]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_and_resumed_it_gives_the_same_weights_bit_for_bit(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ("--steps", "120", "--checkpoint-every", "20")
    process = start(killed, *options)
    wait_for(lambda: (killed / "checkpoints/step-00000040").is_dir(), process)
    process.kill()
    process.wait()
    assert not (killed / "transformer").exists()
    main([*TINY, "--out", str(killed), *options, "--resume"])
    main([*TINY, "--out", str(whole), *options])
    assert same_weights(whole, killed)


def test_interrupted_it_saves_says_how_to_go_on_and_goes_on(tmp_path):
    options = ("--steps", "100000", "--checkpoint-every", "50000")
    process = start(tmp_path / "run", *options)
    events = tmp_path / "run/logs/tensorboard"
    wait_for(
        lambda: any(events.rglob("events*")) and any(f.stat().st_size > 5000 for f in events.rglob("events*")), process
    )
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume" in output
    assert "Traceback" not in output
    (checkpoint,) = checkpoints.list_checkpoints(tmp_path / "run")
    step = checkpoints.checkpoint_step(checkpoint)
    assert step > 0
    AdaDiffPipeline.from_pretrained(tmp_path / "run")
    main([*TINY, "--out", str(tmp_path / "run"), "--resume", "--steps", str(step + 3)])
    assert checkpoints.checkpoint_step(checkpoints.list_checkpoints(tmp_path / "run")[-1]) == step + 3


def test_two_processes_follow_one(tmp_path):
    options = ("--steps", "12")
    output = run_launched(*TINY, "--out", str(tmp_path / "two"), *options)
    assert output.count("the model is in") == 1
    assert (tmp_path / "two/checkpoints/step-00000012/random_states_1.pkl").is_file()
    main([*TINY, "--out", str(tmp_path / "one"), *options])
    for name in ("loss/total", "loss/simple", "loss/uncertainty", "loss/layerwise", "error/layer 1"):
        assert len(scalars(tmp_path / "one", name)) == 12
        assert scalars(tmp_path / "two", name) == pytest.approx(scalars(tmp_path / "one", name), abs=1e-4)


def test_resumed_before_its_first_checkpoint_it_starts_from_the_beginning(tmp_path, capsys):
    train(tiny_config(tmp_path / "whole"))
    train(tiny_config(tmp_path / "run"))
    for path in (tmp_path / "run").iterdir():
        if path.name != "train.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(tiny_config(tmp_path / "run", resume=True))
    assert "from the beginning: there is no checkpoint yet" in capsys.readouterr().out
    assert same_weights(tmp_path / "whole", tmp_path / "run")


def test_a_second_process_is_kept_out_of_the_folder(tmp_path, capsys):
    options = ("--steps", "100000", "--checkpoint-every", "100000")
    process = start(tmp_path / "run", *options)
    wait_for(lambda: (tmp_path / "run/train.json").is_file(), process)
    with pytest.raises(SystemExit) as exited:
        main([*TINY, "--out", str(tmp_path / "run"), *options, "--resume"])
    assert exited.value.code == 2
    assert "another process is writing into" in capsys.readouterr().err
    process.kill()
    process.wait()


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_checkpoint(tmp_path):
    optimizer = OptimizerConfig(lr=1e4, warmup_steps=0, max_grad_norm=math.inf)
    with pytest.raises(Diverged, match=r"not finite at step \d+ of 300.*the last checkpoint is .*step-") as caught:
        train(tiny_config(tmp_path, optimizer=optimizer, steps=300, checkpoint_every=1))
    last = checkpoints.list_checkpoints(tmp_path)[-1]
    assert all(tensor.isfinite().all() for tensor in load_file(last / "model.safetensors").values())
    assert str(last) in str(caught.value)
    assert not (tmp_path / "model_index.json").exists()


def test_single_steps_that_are_not_finite_can_be_skipped(tmp_path, monkeypatch, capsys):
    forward = JointObjective.forward

    def break_the_third(self, image, **batch):
        return forward(self, image * (torch.nan if batch["step"] == 2 else 1), **batch)

    monkeypatch.setattr(JointObjective, "forward", break_the_third)
    with pytest.raises(Diverged, match="not finite at step 3 of 6"):
        train(tiny_config(tmp_path / "strict", workers=1))
    assert not multiprocessing.active_children()
    train(tiny_config(tmp_path / "patient", max_bad_steps=2))
    assert "step 3: the loss or the gradients are not finite" in capsys.readouterr().out
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "patient").values())


def test_terminated_with_its_workers_it_saves_a_checkpoint(tmp_path):
    options = ("--steps", "1000000", "--checkpoint-every", "500000", "--workers", "2")
    command = [sys.executable, "-m", "adadiff", *TINY, "--out", str(tmp_path / "run"), *options]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    events = tmp_path / "run/logs/tensorboard"
    wait_for(lambda: sum(file.stat().st_size for file in events.rglob("events*")) > 5000, process)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert checkpoints.last_sound_checkpoint(tmp_path / "run")[0] is not None


def test_an_unreadable_image_in_a_worker_process_is_one_line(tmp_path):
    for k in range(8):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (12, 12), (30 * k, 90, 90)).save(tmp_path / f"photos/{k}.png")
    broken = tmp_path / "photos/5.png"
    broken.write_bytes(broken.read_bytes()[:-30])  # the header is sound
    data = DataConfig(source=str(tmp_path / "photos"), size=8)
    with pytest.raises(InputError, match=r"5\.png") as caught:
        train(tiny_config(tmp_path / "run", data=data, workers=1))
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_resuming_on_other_classes_or_images_is_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (12, 12), "red").save(tmp_path / f"photos/{name}/0.png")
    data = DataConfig(source=str(tmp_path / "photos"), size=8)
    changes = {"data": data, "model": replace(tiny_config(tmp_path).model, condition="class")}
    train(tiny_config(tmp_path / "run", steps=2, **changes))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (tmp_path / "photos/dog").rename(tmp_path / "photos/ant")
    with pytest.raises(InputError, match=r"trained_on\.data\.classes = \['cat', 'dog'\], not \['ant', 'cat'\]"):
        train(tiny_config(tmp_path / "run", steps=4, resume=True, **changes))
    (tmp_path / "photos/ant").rename(tmp_path / "photos/dog")
    Image.new("RGB", (12, 12), "blue").save(tmp_path / "photos/dog/0.png")
    with pytest.raises(InputError, match=r"trained_on\.data"):
        train(tiny_config(tmp_path / "run", steps=4, resume=True, **changes))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_accumulated_batches_follow_whole_ones(tmp_path):
    train(tiny_config(tmp_path / "one"))
    train(tiny_config(tmp_path / "two", accumulate=2))
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_the_run_folder_holds_model_config_logs_and_the_last_checkpoints(tmp_path):
    config = tiny_config(tmp_path, steps=8, keep_checkpoints=2, sample_every=4)
    train(config)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["step-00000006", "step-00000008"]
    saved = json.loads((tmp_path / "train.json").read_text())
    chosen = {"patch_size": 4, "width": 16, "depth": 3, "num_heads": 2, "head_dim": None, "mlp_ratio": 4.0}
    other = {"condition": "none", "num_classes": None, "text_encoder": "bytes", "head": "shared", "estimator": "concat"}
    assert saved["model"] == {"backbone": "uvit", **chosen, "time_mlp": False, "final_conv": True, **other}
    assert len(scalars(tmp_path, "uncertainty/layer 3")) == 8
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000004.png", "step-00000008.png"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    images = AdaDiffPipeline.from_pretrained(tmp_path)(batch_size=2, num_inference_steps=2).images
    assert images[0].size == (8, 8)


def test_the_saved_model_is_the_moving_average(tmp_path):
    train(tiny_config(tmp_path))
    last = checkpoints.list_checkpoints(tmp_path)[-1]
    average, current = load_file(last / "ema.safetensors"), load_file(last / "model.safetensors")
    saved = AdaDiffPipeline.from_pretrained(tmp_path).transformer
    assert all(torch.equal(p, average[str(k)]) for k, p in enumerate(saved.parameters()))
    assert not torch.equal(saved.backbone.position, current["model.backbone.position"])


def test_training_learns(tmp_path):
    optimizer = OptimizerConfig(lr=5e-3, warmup_steps=10)
    train(tiny_config(tmp_path, optimizer=optimizer, steps=300, batch_size=32, checkpoint_every=300))
    losses = scalars(tmp_path, "loss/total")
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    save_file = checkpoints.save_file

    def full(tensors, path):
        if "step-00000004" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(InputError, match=r"step-00000004.*No space left.*--resume"):
        train(tiny_config(tmp_path))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.setattr(checkpoints, "save_file", save_file)
    train(tiny_config(tmp_path, resume=True))
    train(tiny_config(tmp_path / "whole"))
    assert same_weights(tmp_path, tmp_path / "whole")


def test_fine_tuning_starts_from_the_backbone_and_can_leave_it_as_it_is(tmp_path):
    train(tiny_config(tmp_path / "first", steps=2))
    shallow = replace(tiny_config(tmp_path).model, head="per_layer", estimator="attention")
    train(tiny_config(tmp_path / "frozen", steps=3, model=shallow, init_from=tmp_path / "first", freeze_backbone=True))
    first, frozen = weights(tmp_path / "first"), weights(tmp_path / "frozen")
    backbone = [name for name in first if name.startswith("backbone.")]
    assert all(torch.equal(first[name], frozen[name]) for name in backbone)
    assert not torch.equal(frozen["heads.heads.0.linear.weight"], first["backbone.head.linear.weight"])

    train(tiny_config(tmp_path / "tuned", steps=3, init_from=tmp_path / "first"))
    tuned = weights(tmp_path / "tuned")
    assert not any(torch.equal(first[name], tuned[name]) for name in backbone if "norm" not in name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(UViTConfig(width=20, num_heads=3))}, "multiple of the number of heads"),
        ({"model": ModelConfig(UViTConfig(patch_size=16))}, "patches of 16"),
        ({"init_from": Path("nowhere")}, "no model folder nowhere"),
        ({"resume": True}, "no run to resume"),
    ],
)
def test_bad_configurations_are_named_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(tiny_config(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "checkpoint_every", "log_every"])
def test_counts_below_one_are_named(tmp_path, name):
    with pytest.raises(InputError, match=name):
        train(tiny_config(tmp_path / "run", **{name: 0}))
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="already holds other files"):
        train(tiny_config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_another_training_is_refused(tmp_path):
    train(tiny_config(tmp_path, steps=2))
    with pytest.raises(InputError, match="trained with seed = 0, not 1"):
        train(tiny_config(tmp_path, steps=4, seed=1, resume=True))
    with pytest.raises(InputError, match="--resume"):
        train(tiny_config(tmp_path, steps=4))


@pytest.mark.parametrize(("instruction", "precision"), [("avx512_bf16", "bf16"), ("amx_bf16", "bf16"), ("avx2", "no")])
def test_automatic_precision_is_one_the_cpu_computes_with(tmp_path, monkeypatch, instruction, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True}, raising=False)
    train(tiny_config(tmp_path, mixed_precision="auto", steps=1))
    assert json.loads((tmp_path / "train.json").read_text())["mixed_precision"] == precision

"""Checkpoints: damaged ones are found and passed over, and other people's files are left alone."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from adadiff import InputError
from adadiff.training import train
from adadiff.training.checkpoints import list_checkpoints
from adadiff.training.config import OptimizerConfig
from tests.training.conftest import tiny_config

CONSTANT = OptimizerConfig(warmup_steps=2, schedule="constant_with_warmup")  # the same, however many steps are to come
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of 6 steps with checkpoints at 2, 4 and 6, and the weights of one that went on to 8 undamaged."""
    torch.set_num_threads(1)  # as in the tests, so that the weights can be compared bit for bit
    folder = tmp_path_factory.mktemp("runs")
    train(tiny_config(folder / "run", keep_checkpoints=3, optimizer=CONSTANT))
    shutil.copytree(folder / "run", folder / "undamaged")
    train(tiny_config(folder / "undamaged", keep_checkpoints=3, optimizer=CONSTANT, steps=8, resume=True))
    return folder / "run", load_file(folder / "undamaged" / WEIGHTS)


def empty(path):
    path.write_bytes(b"")


def zero_64_bytes(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [empty, zero_64_bytes, lambda path: path.unlink()], ids=["empty", "zeros", "gone"])
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "ema.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "SHA256SUMS"],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_taken(runs, tmp_path, capsys, name, damage):
    run, undamaged = runs
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run/checkpoints/step-00000006" / name)
    train(tiny_config(tmp_path / "run", keep_checkpoints=3, optimizer=CONSTANT, steps=8, resume=True))
    printed = capsys.readouterr().out
    assert f"step-00000006 is damaged: {tmp_path}/run/checkpoints/step-00000006/{name}" in printed
    assert "continuing from" in printed
    weights = load_file(tmp_path / "run" / WEIGHTS)
    assert all(torch.equal(weights[key], undamaged[key]) for key in undamaged)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [f"step-0000000{k}" for k in (4, 6, 8)]
    assert (tmp_path / "run/checkpoints/step-00000006.damaged").is_dir()


def test_without_a_sound_checkpoint_the_first_fault_is_named(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    for checkpoint in list_checkpoints(tmp_path / "run"):
        empty(checkpoint / "optimizer.bin")
    with pytest.raises(InputError, match=r"step-00000006 is damaged.*and so are all earlier ones"):
        train(tiny_config(tmp_path / "run", keep_checkpoints=3, optimizer=CONSTANT, steps=8, resume=True))


def test_only_our_own_names_are_checkpoints(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    copies = [folder / name for name in ("step-00000002-good", "step-best", "step-1", "my-step-00000002")]
    for copy in copies:
        shutil.copytree(folder / "step-00000002", copy)
    (folder / "step-notes.txt").write_text("mine")
    (folder / "step-00000099").write_text("a file of the user's")
    (folder / "step-00000001").symlink_to(copies[0], target_is_directory=True)
    train(tiny_config(tmp_path / "run", keep_checkpoints=1, optimizer=CONSTANT, steps=8, resume=True))
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000008"]
    assert all((copy / "optimizer.bin").is_file() for copy in copies)
    assert (folder / "step-notes.txt").read_text() == "mine"
    assert (folder / "step-00000099").is_file()
    assert (folder / "step-00000001").is_symlink()

"""Work killed at a random moment goes on to the same bytes as work that was left alone.

The suite kills 6 times, `make crash` 100 times: ADADIFF_CRASHES says how often.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from adadiff.cli import main

CRASHES = int(os.environ.get("ADADIFF_CRASHES", "6"))
TINY_MODEL = "--model.patch-size 4 --model.width 16 --model.depth 3 --model.num-heads 2 --mixed-precision no"
TRAIN = f"train digits {TINY_MODEL} --batch-size 8 --steps 40 --checkpoint-every 5 --sample-every 20 --out"
SAMPLE = "sample MODEL -n 24 --steps 8 --tau 0.4 --batch-size 2 --device cpu --out"

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(
    ["adadiff.cli.commands", "adadiff.training.presets", "adadiff.training", "adadiff.cli.shared"]
)


def run(command: str, folder: str) -> None:
    """Run a command in this process on one thread, its output in a file beside the folder."""
    import torch

    torch.set_num_threads(1)
    output = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    main([*command.split(), folder])


def start(command: str, folder: Path) -> multiprocessing.process.BaseProcess:
    process = forkserver.Process(target=run, args=(command, str(folder)))
    process.start()
    return process


def finish(command: str, folder: Path) -> float:
    """Run a command to its end; returns the seconds it took."""
    began = time.monotonic()
    process = start(command, folder)
    process.join(120)
    assert process.exitcode == 0, Path(f"{folder}.log").read_text()
    return time.monotonic() - began


def results(folder: Path) -> dict[str, bytes]:
    """What must be the same, by path: all but logs, times, and the state of random generators, which nothing reads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith("logs/") or path.name.startswith("random_states"):
            continue
        if path.name == "train.json":  # holds the folder's name and whether it was resumed
            continue
        if path.name == "SHA256SUMS" and "checkpoints" in name:  # holds that of the random states
            continue
        found[name] = path.read_bytes()
        if path.suffix == ".png" and path.stem.isdecimal():
            with Image.open(path) as image:
                notes = {key: value for key, value in image.info.items() if key != "seconds"}
                found[name] = image.tobytes() + repr(sorted(notes.items())).encode()
    return found


@pytest.mark.parametrize("work", ["training", "sampling"])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(work, model_folder, tmp_path):
    command, resume = (TRAIN, "--resume") if work == "training" else (SAMPLE.replace("MODEL", str(model_folder)), "")
    finish(command, tmp_path / "warm")  # the first child pays for what the fork server has not loaded
    seconds = finish(command, tmp_path / "whole")
    wanted, chance = results(tmp_path / "whole"), random.Random(0)
    for number in range(CRASHES // 2):
        folder = tmp_path / f"killed-{number}"
        process = start(command, folder)
        process.join(chance.uniform(0.1, 1) * seconds)
        process.kill()
        process.join()
        begun = (folder / "train.json").is_file()
        words = command.replace("--out", f"{resume} --out") if begun else command
        finish(words, folder)
        got = results(folder)
        assert got.keys() == wanted.keys()
        assert not [name for name in wanted if got[name] != wanted[name]], f"kill {number}"
        shutil.rmtree(folder)

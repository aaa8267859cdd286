"""Damaged input of every kind: InputError is all that comes out, and nothing outside the output folder changes.

Every case follows from its number. ADADIFF_FUZZ multiplies the cases; `make fuzz` takes 20 times as many.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from adadiff import AdaDiffPipeline, InputError
from adadiff.cli import main
from adadiff.data import DataConfig, ImageData, open_data
from adadiff.sampling.defaults import SamplingDefaults

TIMES = int(os.environ.get("ADADIFF_FUZZ", "1"))
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "DDS")
ODD_VALUES = (None, True, -1, 0, 1, 2, 3.5, math.nan, math.inf, -1e300, "", "x", "7", [], [1], {}, {"a": 1})
ODD_NUMBERS = ("nan", "inf", "-inf", "-1", "0", "0.5", "1", "1e400", "-1e-9", "99999999999999999999999", "x", "", "3.7")


def cases(number: int) -> range:
    return range(number * TIMES)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The bytes with a few of them changed, a piece zeroed, doubled or cut out, or the end missing."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(changed) + 1), chance.randint(1, 16)
        kind = chance.choice(("flip", "zero", "double", "cut", "truncate"))
        if kind == "flip":
            changed[at : at + length] = bytes(byte ^ (1 << chance.randrange(8)) for byte in changed[at : at + length])
        elif kind == "zero":
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        elif kind == "double":
            changed[at:at] = changed[at : at + length]
        elif kind == "cut":
            del changed[at : at + length]
        elif chance.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def survives(work: Callable[[], Any]) -> str | None:
    """The message of the InputError that the work raised, or None; anything else it raises is a failure."""
    message = None
    try:
        work()
    except InputError as error:
        message = str(error)
    assert "\n" not in (message or "")
    return message


def encoded_image(chance: random.Random) -> bytes:
    mode, kind = chance.choice(("L", "RGB", "RGBA", "P", "1", "I;16")), chance.choice(FORMATS)
    pixels = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (9, 12, 3), np.uint8)
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    stored = io.BytesIO()
    try:
        image.save(stored, kind)
    except (OSError, ValueError):  # the format does not know the mode
        stored = io.BytesIO()
        Image.fromarray(pixels).save(stored, "PNG")
    return stored.getvalue()


def test_damaged_images(tmp_path):
    refused = 0
    for number in cases(150):
        chance = random.Random(number)
        (tmp_path / "a.png").write_bytes(mutated(encoded_image(chance), chance))

        def read() -> None:
            item = ImageData(DataConfig(source=str(tmp_path), size=8))[0]
            assert item["image"].abs().max() <= 1

        refused += survives(read) is not None
    assert 0 < refused < len(cases(150))


def changed_json(values: Any, chance: random.Random) -> Any:
    """The values with one of them replaced by something else, removed, or moved to an unknown name."""
    places = [(values, key) for key in values]
    for holder, key in places:
        inner = holder[key]
        if isinstance(inner, dict):
            places += [(inner, name) for name in inner]
        elif isinstance(inner, list):
            places += [(inner, k) for k in range(len(inner))]
    holder, key = chance.choice(places)
    if isinstance(holder, dict) and chance.random() < 0.2:
        holder[chance.choice(("unknown", ""))] = holder.pop(key)
    else:
        holder[key] = chance.choice(ODD_VALUES)
    return values


def use_model(folder: Path) -> None:
    """What every command does with a model folder, and one image."""
    pipeline = AdaDiffPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(num_inference_steps=2)


@pytest.fixture
def full_folder(model_folder):
    """A small model folder with all that a model folder can hold, its checksums taken out of the way."""
    SamplingDefaults(steps=2).save(model_folder)
    described = {
        "version": 1,
        "goal": {"compute": 0.5},
        "found": {"kind": "step schedule"},
        "calibrated_for": {"weights": None, "depth": 5, "scheduler": "ddpm", "steps": 2, "guidance_scale": 1.0},
        "policy": {"policy": "ScheduleExit", "layers": [5, 2]},
    }
    (model_folder / "exit_policy.json").write_text(json.dumps(described))
    for sums in model_folder.rglob("SHA256SUMS"):
        sums.unlink()
    use_model(model_folder)
    return model_folder


def test_damaged_json(full_folder, tmp_path):
    names = sorted(path.relative_to(full_folder) for path in full_folder.rglob("*.json"))
    assert len(names) == 5
    refused = 0
    for number in cases(100):
        chance = random.Random(number)
        folder = shutil.copytree(full_folder, tmp_path / "copy", dirs_exist_ok=True)
        path = folder / chance.choice(names)
        if chance.random() < 0.3:
            path.write_bytes(mutated(path.read_bytes(), chance))
        else:
            path.write_text(json.dumps(changed_json(json.loads(path.read_text()), chance)))
        refused += survives(lambda folder=folder: use_model(folder)) is not None
    assert refused > len(cases(100)) // 3


def test_damaged_weights(full_folder):
    weights = full_folder / "transformer/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for number in cases(60):
        chance = random.Random(number)
        weights.write_bytes(mutated(whole[:header], chance) + whole[header:])
        refused += survives(lambda: use_model(full_folder)) is not None
    assert refused > len(cases(60)) // 2
    values = torch.frombuffer(bytearray(whole[header:]), dtype=torch.float32).clone()
    for odd in (math.nan, math.inf):
        values[7] = odd
        weights.write_bytes(whole[:header] + values.numpy().tobytes())
        assert "NaN or infinite" in (survives(lambda: use_model(full_folder)) or "")


def odd_column(kind: str, chance: random.Random) -> pa.Array:
    """Three cells of one type, some of them not what a column of this kind holds."""
    stored = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(stored, "PNG")
    image = {"bytes": stored.getvalue(), "path": None}
    usual = {"image": image, "label": 1, "text": "a cat"}[kind]
    others: tuple[Any, ...] = (
        [None],
        [{"bytes": b"", "path": None}, {"bytes": None, "path": None}, {"bytes": b"x", "path": "nowhere.png"}],
        [-1, 2**40],
        [1.5, math.nan],
        [True, False],
        ["", "NA", "x"],
        [[], [1], None],
        [b"", b"\0"],
    )
    odd = chance.choice(others)
    cells = [chance.choice([*odd, usual] if chance.random() < 0.4 else odd) for _ in range(3)]
    try:
        return pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # types that do not go together in one column
        return pa.array([chance.choice(odd)] * 3)


def test_odd_parquet_cells(tmp_path):
    refused = 0
    for number in cases(120):
        chance = random.Random(number)
        columns = {kind: odd_column(kind, chance) for kind in ("label", "text")}
        stored = io.BytesIO()
        Image.new("RGB", (9, 9), "red").save(stored, "PNG")
        sound = pa.array([{"bytes": stored.getvalue(), "path": None}] * 3)
        columns["image"] = sound if chance.random() < 0.6 else odd_column("image", chance)
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table(columns), path)
        condition = chance.choice(("none", "class", "text"))
        config = DataConfig(source=str(path), size=8, on_error=chance.choice(("stop", "skip")))

        def read(config: DataConfig = config, condition: str = condition) -> None:
            data = open_data(config, 1, condition)
            for k in range(len(data)):
                item = data[k]
                assert item["image"].shape == (3, 8, 8)
            if condition == "class":
                assert all(isinstance(label, int) and label >= 0 for label in data.labels())
            if condition == "text":
                assert all(isinstance(caption, str) and caption for caption in data.captions())

        refused += survives(read) is not None
    assert len(cases(120)) // 4 < refused < len(cases(120))


TINY = "--model.patch-size 4 --model.width 16 --model.depth 3 --model.num-heads 2 --mixed-precision no"
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": (
        f"train digits {TINY} --steps 1 --batch-size 2 --sample-every 0 --out OUT",
        (
            *("--steps", "--batch-size", "--accumulate", "--seed", "--workers", "--checkpoint-every", "--log-every"),
            *("--model.patch-size", "--model.width", "--model.depth", "--model.num-heads", "--model.mlp-ratio"),
            *("--optimizer.lr", "--optimizer.weight-decay", "--optimizer.warmup-steps", "--optimizer.max-grad-norm"),
            *("--optimizer.ema-decay", "--diffusion.num-train-timesteps", "--diffusion.beta-start", "--max-bad-steps"),
            *("--loss.layerwise-weight", "--condition-dropout", "--data.size", "--sampling.steps", "--sampling.tau"),
        ),
    ),
    "sample": (
        "sample MODEL -n 1 --steps 1 --tau 0.5 --out OUT",
        (
            *("-n", "--steps", "--tau", "--min-layer", "--patience", "--last-patient-layer", "--exit-layer"),
            *("--guidance-scale", "--seed", "--batch-size", "--class-index"),
        ),
    ),
    "calibrate": (
        "calibrate MODEL --compute 0.6 --samples 8 --steps 2",
        ("--compute", "--error", "--speedup", "--confidence", "--steps", "--samples", "--batch-size", "--seed"),
    ),
    "demo": (
        "demo --model MODEL -n 1 --steps 1 --tau 0.5 --out OUT",
        ("-n", "--steps", "--tau", "--min-layer", "--guidance-scale", "--seed"),
    ),
}


def with_option(command: str, option: str, value: str) -> list[str]:
    words = command.split()
    if option in words:
        at = words.index(option)
        del words[at : at + 2]
    return [*words, f"{option}={value}"]


@pytest.mark.parametrize("name", COMMANDS)
def test_odd_numbers_on_the_command_line(model_folder, tmp_path, capsys, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    command, options = COMMANDS[name]
    command = command.replace("MODEL", str(model_folder)).replace("OUT", str(tmp_path / "out"))
    for number in cases(25):
        chance = random.Random(number)
        option, value = chance.choice(options), chance.choice(ODD_NUMBERS)
        before, code = files(tmp_path), 0
        try:
            main(with_option(command, option, value))
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr().err
        assert code in (0, 1, 2), printed
        assert code != 1 or "not finite at step" in printed, printed  # a training whose loss grew without bound
        assert "Traceback" not in printed
        assert code != 2 or files(tmp_path) == before, f"{option}={value} left something behind"
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        for made in ("exit_policy.json", "calibration.png"):
            (model_folder / made).unlink(missing_ok=True)
        assert (tmp_path / "mine/notes.txt").read_text() == "mine"

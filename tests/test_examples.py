"""The examples run, and what they make is loaded elsewhere as their first lines say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import datasets
import diffusers
import pytest
import torch

from adadiff import AdaDiffPipeline, InputError, load_policy
from adadiff.backbones import BACKBONES
from adadiff.cli import main
from adadiff.policies import POLICIES, ExitQuery
from adadiff.training.presets import PRESETS
from tests.conftest import REPOSITORY

EXAMPLES = sorted(path.stem for path in (REPOSITORY / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def importable(monkeypatch, tmp_path):
    """Make the examples importable, as PYTHONPATH does; forget afterwards what they registered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    tables = (BACKBONES, POLICIES, PRESETS)
    before = [dict(table) for table in tables]
    yield
    for table, earlier in zip(tables, before, strict=True):
        table.clear()
        table.update(earlier)
    for name in EXAMPLES:
        sys.modules.pop(name, None)


def forget(module: str) -> None:
    """Make this process one that has not imported an example yet."""
    del sys.modules[module]
    for table in (BACKBONES, POLICIES):
        for name in [name for name in table if name.startswith(f"{module}:")]:
            del table[name]


def run(example: str, folder: Path) -> None:
    importlib.import_module(example).main(folder)


def test_a_policy_is_stored_and_loaded(tmp_path, capsys):
    run("own_policy", tmp_path / "model")
    assert "of the full model's compute" in capsys.readouterr().out
    policy = load_policy(tmp_path / "model")
    assert policy.describe() == {"policy": "own_policy:FallingThreshold", "tau": 0.4, "rate": 0.98}
    forget("own_policy")
    with pytest.raises(InputError, match="import own_policy before it is loaded"):
        load_policy(tmp_path / "model")
    main(["sample", "model", "-n", "1", "--out", "samples", "--import", "own_policy"])
    assert (tmp_path / "samples/trace.json").is_file()


def test_the_policys_threshold_falls_with_each_rows_step():
    policy = importlib.import_module("own_policy").FallingThreshold(tau=0.8, rate=0.5)
    uncertainty = torch.tensor([[0.3], [0.3], [0.9]])
    query = ExitQuery(torch.tensor([1, 2, 0]), 1, torch.arange(3), uncertainty)  # thresholds 0.4, 0.2 and 0.8
    assert policy.leaves(query).tolist() == [True, False, False]


def test_a_backbone_is_trained_and_sampled(tmp_path, capsys):
    run("own_backbone", tmp_path / "run")
    assert "of the full model's compute" in capsys.readouterr().out
    model = AdaDiffPipeline.from_pretrained(tmp_path / "run").transformer
    assert (model.config.backbone_type, model.depth) == ("own_backbone:PlainViT", 4)
    forget("own_backbone")
    message = r"own_backbone:PlainViT is not one of adadiff's: import own_backbone .* --import own_backbone"
    with pytest.raises(InputError, match=message):
        AdaDiffPipeline.from_pretrained(tmp_path / "run")
    main(["sample", "run", "-n", "1", "--steps", "2", "--tau", "1", "--out", "samples", "--import=own_backbone"])
    assert (tmp_path / "samples/trace.json").is_file()


def test_the_command_line_trains_a_backbone_with_its_own_options(tmp_path, capsys):
    words = "--import own_backbone train digits-plain --model.width 24 --model.num-heads 3 --model.depth 2 --out run"
    short = "--steps 1 --batch-size 2 --mixed-precision no --gradient-checkpointing --model.condition class"
    main([*words.split(), *short.split()])
    model = AdaDiffPipeline.from_pretrained(tmp_path / "run").transformer
    assert (model.backbone.config.num_heads, model.backbone.width, model.depth) == (3, 24, 2)
    assert model.backbone.num_classes == 11
    main(["info", "digits-plain"])
    assert "4 of width 32" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "digits-plain", "--model.time-mlp"])  # an option of U-ViT alone
    assert "time-mlp" in capsys.readouterr().err


def test_a_conditioning_is_trained_and_sampled_without_its_code(tmp_path, capsys):
    run("own_conditioning", tmp_path / "run")
    assert "3 images; the model's classes are even, odd" in capsys.readouterr().out
    forget("own_conditioning")
    pipe = AdaDiffPipeline.from_pretrained(tmp_path / "run")
    assert (pipe.transformer.config.class_names, pipe.transformer.config.null_class) == (["even", "odd"], 2)
    main(["sample", "run", "-n", "1", "--steps", "2", "--class", "odd", "--out", "samples"])
    assert "own_conditioning" not in sys.modules


def test_a_baseline_is_sampled():
    error, trace = importlib.import_module("own_baseline").main()
    assert 0 < error < 0.02
    assert 0.5 < trace.compute_fraction < 0.6


@pytest.mark.parametrize("task", ["digits", "emoji"])
def test_a_stock_pipeline_is_trained_resumed_and_loaded(task, tmp_path, monkeypatch, capsys):
    example = importlib.import_module("train_stock_dit")
    data = tmp_path / "emoji.parquet"
    picture = {"bytes": (REPOSITORY / "docs/demo.png").read_bytes()}
    datasets.Dataset.from_dict({"image": [picture] * 3, "text": ["red apple", "green apple", "boat"]}).cast_column(
        "image", datasets.Image()
    ).to_parquet(data)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, stops in ((whole, (2,)), (parts, (1, 2))):
        for steps in stops:
            monkeypatch.setattr(example, "learning_rate", lambda step, steps: 1.0)
            monkeypatch.setattr("sys.argv", f"train {task} --data {data} --out {out} --steps {steps}".split())
            example.main()
    pipes = [diffusers.DiffusionPipeline.from_pretrained(folder) for folder in (whole, parts)]
    first, other = (pipe.transformer.state_dict() for pipe in pipes)
    assert all(torch.equal(first[name], other[name]) for name in first)
    arguments = {"class_labels": [3, 7]} if task == "digits" else {"prompt": ["red apple", "boat"]}
    if task == "emoji":
        arguments |= {"use_resolution_binning": False, "max_sequence_length": 12, "clean_caption": False}
    images = pipes[0](**arguments, num_inference_steps=2, guidance_scale=2.0, output_type="pt")[0]
    assert images.shape == ((2, 1, 8, 8) if task == "digits" else (2, 3, 32, 32))


def test_the_identity_autoencoder_returns_its_input():
    autoencoder = importlib.import_module("train_stock_dit").identity_autoencoder(3, 16)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(autoencoder.decode(images).sample, images, atol=1e-4)
        assert torch.allclose(autoencoder.encode(images).latent_dist.mode(), images, atol=1e-4)

"""Trainings that are told something of their images: classes, captions, and what is wrong with them."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from adadiff import AdaDiffPipeline, InputError
from adadiff.backbones import UViTConfig
from adadiff.conditioning import TransformersTextEncoder
from adadiff.data import DataConfig
from adadiff.training import checkpoints, train
from adadiff.training.config import DiffusionConfig, ModelConfig, OptimizerConfig
from tests.conditioning.conftest import clip_folder  # noqa: F401 - a fixture
from tests.training.conftest import tiny_config

MODEL = ModelConfig(UViTConfig(patch_size=4, width=16, depth=3, num_heads=2))
CLASSES = dataclasses.replace(MODEL, condition="class")
TEXT = dataclasses.replace(MODEL, condition="text")


@pytest.fixture
def shades(tmp_path):
    """Black images called black and white ones called white, class 0 and 1."""
    names = ["black", "white"]
    features = datasets.Features(
        {
            **{"image": datasets.Image(), "label": datasets.ClassLabel(names=names)},
            **{"text": datasets.Value("string"), "number": datasets.Value("int64")},
        }
    )
    images = [Image.fromarray(np.full((8, 8), 255 * (k % 2), dtype=np.uint8)) for k in range(40)]
    kinds = [k % 2 for k in range(40)]
    rows = {"image": images, "label": kinds, "text": [names[kind] for kind in kinds], "number": kinds}
    path = tmp_path / "shades.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return DataConfig(source=str(path), size=8, channels=1)


def learn(out, data, model):
    optimizer = OptimizerConfig(lr=3e-3, warmup_steps=10, ema_decay=0.98)
    diffusion = DiffusionConfig(prediction_type="v_prediction")
    train(tiny_config(out, data=data, model=model, optimizer=optimizer, diffusion=diffusion, steps=150, batch_size=16))
    pipeline = AdaDiffPipeline.from_pretrained(out)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def brightness(pipeline, **conditions):
    generator = torch.Generator().manual_seed(0)
    images = pipeline(num_inference_steps=10, output_type="pt", generator=generator, **conditions).images
    return images.mean((1, 2, 3)).tolist()


def test_a_class_model_learns_its_classes(tmp_path, shades):
    pipeline = learn(tmp_path / "run", shades, CLASSES)
    assert pipeline.transformer.config.class_names == ["black", "white"]
    assert pipeline.transformer.config.null_class == 2
    dark, bright = brightness(pipeline, class_labels=["black", 1])
    assert dark < 0.25
    assert bright > 0.75


def test_a_text_model_learns_its_captions_together_with_the_byte_encoder(tmp_path, shades):
    pipeline = learn(tmp_path / "run", shades, TEXT)
    dark, bright = brightness(pipeline, prompt=["black", "white"])
    assert dark < 0.25
    assert bright > 0.75
    last = load_file(checkpoints.list_checkpoints(tmp_path / "run")[-1] / "ema.safetensors")
    parameters = [*pipeline.transformer.parameters(), *pipeline.text_encoder.parameters()]
    assert all(torch.equal(parameter, last[str(k)]) for k, parameter in enumerate(parameters))


def test_a_frozen_text_model_is_kept_with_the_model_and_its_features_on_disk(
    tmp_path,
    shades,
    clip_folder,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = dataclasses.replace(TEXT, text_encoder=str(clip_folder))
    train(tiny_config(tmp_path / "run", data=shades, model=model, steps=2, sample_every=2))
    (cached,) = (tmp_path / "cache/adadiff").glob("captions-*.arrow")
    first = cached.stat().st_mtime_ns
    train(tiny_config(tmp_path / "again", data=shades, model=model, steps=2))
    assert cached.stat().st_mtime_ns == first
    pipeline = AdaDiffPipeline.from_pretrained(tmp_path / "run")
    assert pipeline.text_encoder.shape == (9, 8)
    encoder = TransformersTextEncoder.from_pretrained(clip_folder)
    assert torch.equal(pipeline.text_encoder.encode(["white"]), encoder.encode(["white"]))
    pipeline(prompt="white", guidance_scale=2.0, num_inference_steps=2)


def test_fine_tuning_takes_over_the_byte_encoder(tmp_path, shades):
    train(tiny_config(tmp_path / "first", data=shades, model=TEXT, steps=2))
    config = tiny_config(
        tmp_path / "frozen", data=shades, model=TEXT, steps=2, init_from=tmp_path / "first", freeze_backbone=True
    )
    train(config)
    first, frozen = (
        load_file(tmp_path / run / "text_encoder/diffusion_pytorch_model.safetensors") for run in ("first", "frozen")
    )
    assert all(torch.equal(first[name], frozen[name]) for name in first)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (TEXT, {"caption_column": "words"}, "no caption column 'words': set --data.caption-column to one of"),
        (CLASSES, {"label_column": "kind"}, "no label column 'kind': set --data.label-column to one of"),
        (CLASSES, {"label_column": "number"}, "no names to count: set --model.num-classes"),
        (dataclasses.replace(CLASSES, num_classes=2), {}, "no room for a null class: set --condition-dropout 0"),
        (dataclasses.replace(CLASSES, num_classes=1), {}, "no room for a null class"),
        (dataclasses.replace(TEXT, text_encoder="no/such-encoder"), {}, "neither a folder with a text model"),
    ],
)
def test_conditions_that_do_not_fit_the_data_are_named_and_nothing_is_written(tmp_path, shades, model, data, message):
    with pytest.raises(InputError, match=message):
        train(tiny_config(tmp_path / "run", data=dataclasses.replace(shades, **data), model=model))
    assert not (tmp_path / "run").exists()


def test_labels_outside_the_table_are_named(tmp_path, shades):
    model = dataclasses.replace(CLASSES, num_classes=1)
    with pytest.raises(InputError, match="the data have a label 1, but the model's classes are 0 to 0"):
        train(tiny_config(tmp_path / "run", data=shades, model=model, condition_dropout=0.0))

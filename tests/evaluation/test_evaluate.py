"""Every metric of a folder of samples."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from adadiff import InputError, ThresholdExit
from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.evaluate import Judge, class_agreement, evaluate_folder, evaluation_table, judge_for, load_clip
from adadiff.evaluation.features import FeatureNetwork, ImageFeatures
from adadiff.evaluation.metrics import frechet_distance, kernel_distance, precision_recall
from adadiff.sampling import Conditions
from adadiff.sampling.folder import image_path, sample_to_folder
from tests.conditioning.conftest import make_clip


class Quadrants(nn.Module):
    """Means of the four quadrants, and the brightest of them as a class."""

    def forward(self, images):
        means = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)
        return means, means


@pytest.fixture
def judge():
    reference = np.random.default_rng(0).normal(0.5, 0.2, size=(30, 4)).astype(np.float32)
    return Judge(
        FeatureNetwork("quadrants", Quadrants(), ("cat", "dog", "owl", "emu")),
        ImageData(DataConfig()),
        ImageFeatures(reference),
    )


def test_the_figures_are_those_of_the_folders_images(class_pipeline, tmp_path, judge):
    conditions = Conditions(("dog", 0))
    summary = sample_to_folder(class_pipeline, tmp_path, 12, 2, ThresholdExit(0.5), 0, conditions)
    Image.new("L", (8, 8), 77).save(image_path(tmp_path, 5))

    evaluation = evaluate_folder(tmp_path, summary, judge)
    pixels = torch.stack([torch.tensor(np.array(Image.open(image_path(tmp_path, k)))) for k in range(12)])
    vectors, _ = Quadrants()(pixels[:, None] / 255)
    real = judge.reference.vectors
    chosen = real[np.random.default_rng(0).permutation(30)[:12]]
    assert evaluation.frechet == pytest.approx(frechet_distance(vectors.numpy(), real), rel=1e-5)
    assert evaluation.kernel == pytest.approx(kernel_distance(vectors.numpy(), chosen), rel=1e-4)
    assert (evaluation.precision, evaluation.recall) == precision_recall(vectors.numpy(), chosen)
    assert evaluation.class_agreement == np.mean([vectors[k].argmax() == (1, 0)[k % 2] for k in range(12)])
    assert evaluation.layer_fraction == summary.totals.layer_fraction < 1
    assert evaluation.images_per_second == pytest.approx(12 / summary.seconds)
    assert evaluation.constant_images == (5,)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["frechet"] == evaluation.frechet
    assert saved["request"]["conditions"]["classes"] == ["dog", "cat"]

    console = Console(width=100)
    with console.capture() as printed:
        console.print(evaluation_table(evaluation))
    assert "1 images: 000005" in printed.get()


def test_class_agreement_counts_in_turns_and_only_what_the_network_knows():
    guesses = np.array([0, 1, 0, 0, 2])
    assert class_agreement(guesses, ["cat", "dog", "owl"], ["cat", "dog"]) == 0.6
    assert class_agreement(guesses, ["cat", "dog", "owl"], ["emu"]) is None
    assert class_agreement(guesses, ["cat", "dog", "owl"], []) is None
    assert class_agreement(None, ["cat"], ["cat"]) is None


def test_the_clip_score_is_100_times_the_cosine(tmp_path):
    folder = make_whole_clip(tmp_path)
    scorer = load_clip(str(folder))
    pixels = np.random.default_rng(0).integers(256, size=(3, 16, 16, 3), dtype=np.uint8)
    images = [Image.fromarray(image) for image in pixels]
    texts = ["a cat", "dog", "owl"]
    processor = CLIPProcessor.from_pretrained(folder)
    wanted = []
    for image, text in zip(images, texts, strict=True):
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        output = CLIPModel.from_pretrained(folder)(**inputs)
        cosine = torch.cosine_similarity(output.image_embeds, output.text_embeds).item()
        wanted.append(100 * max(cosine, 0))
    assert scorer.score(images, texts).tolist() == pytest.approx(wanted, abs=1e-3)
    assert max(wanted) > 0


def test_prompts_are_scored_with_their_images(text_pipeline, tmp_path, judge):
    scorer = load_clip(str(make_whole_clip(tmp_path)))
    conditions = Conditions(prompts=("a cat", "dog"))
    summary = sample_to_folder(text_pipeline, tmp_path / "out", 5, 2, ThresholdExit(0.5), 0, conditions)
    evaluation = evaluate_folder(tmp_path / "out", summary, replace(judge, clip=scorer))
    images = [Image.open(image_path(tmp_path / "out", k)) for k in range(5)]
    wanted = scorer.score(images, ["a cat", "dog", "a cat", "dog", "a cat"]).mean().item()
    assert evaluation.clip_score == pytest.approx(wanted, abs=1e-3)


def make_whole_clip(folder):
    """A CLIP of images of 16 pixels and letters."""
    texts = make_clip(folder / "texts", length=9)
    torch.manual_seed(2)
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **{**small, "vocab_size": 54, "max_position_embeddings": 9},
            **{"bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53},
        },
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=4,
    )
    CLIPModel(config).save_pretrained(folder / "clip")
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    CLIPProcessor(pixels, CLIPTokenizer.from_pretrained(texts)).save_pretrained(folder / "clip")
    return folder / "clip"


def test_too_few_images_are_told_before_sampling(judge):
    judge.require_enough(5)
    with pytest.raises(InputError, match="4 images are too few for metrics on the features quadrants: at least 5"):
        judge.require_enough(4)


@pytest.mark.parametrize("n", [4, 5])
def test_too_few_real_images_are_refused_before_sampling(pipeline, tmp_path, monkeypatch, n):
    """Four features need five images, for a covariance; three neighbours need four."""
    monkeypatch.setattr("adadiff.evaluation.features.cache_folder", lambda: tmp_path / "cache")
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    for k in range(n):
        Image.new("L", (8, 8), 20 * k).save(tmp_path / f"photos/{k}.png")
    data, network = DataConfig(source=str(tmp_path / "photos")), "tests.comparison.conftest:Quadrants"
    if n == 5:
        assert judge_for(tmp_path / "model", data, network, None, torch.device("cpu")).least_images == 5
        return
    with pytest.raises(
        InputError, match=r"4 real images are too few for metrics on the features .*: at least 5 are needed"
    ):
        judge_for(tmp_path / "model", data, network, None, torch.device("cpu"))


@pytest.mark.parametrize(
    ("side", "mode", "settings", "message"),
    [
        (4, "RGB", {}, "smaller"),
        (8, "L", {}, "are grey, but the model's are RGB"),
        (8, "RGB", {"clip": "no/such"}, "the model takes none: leave --clip out"),
        (8, "RGB", {"features": "no-such"}, "no feature network"),
    ],
)
def test_a_judge_that_does_not_fit_is_refused(tmp_path, side, mode, settings, message):
    from adadiff import AdaDiffPipeline
    from adadiff.training.config import DiffusionConfig
    from tests.conftest import make_model

    AdaDiffPipeline(make_model(in_channels=3), DiffusionConfig().build()).save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    Image.new(mode, (side, side)).save(tmp_path / "photos/0.png")
    data = DataConfig(source=str(tmp_path / "photos"))
    with pytest.raises(InputError, match=message):
        judge_for(tmp_path / "model", data, **{"features": "small", "clip": None, "device": "cpu", **settings})


def test_a_clip_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="neither a folder with a CLIP model"):
        load_clip(str(tmp_path))

"""Every metric of a folder of samples."""

import colorsys
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from adadiff import AdaDiffPipeline, InputError, ThresholdExit
from adadiff.data import DataConfig, ImageData
from adadiff.evaluation.clip import load_clip
from adadiff.evaluation.evaluate import evaluate_folder, evaluation_table
from adadiff.evaluation.evaluator import Evaluator, Reference
from adadiff.evaluation.features import FeatureNetwork, ImageFeatures
from adadiff.evaluation.metrics import frechet_distance, kernel_distance, precision_recall
from adadiff.sampling import Conditions
from adadiff.sampling.folder import image_path, sample_to_folder
from adadiff.training.config import DiffusionConfig
from tests.conditioning.conftest import make_clip
from tests.conftest import make_model


class Quadrants(nn.Module):
    """Means of the four quadrants, and the brightest of them as a class."""

    def forward(self, images):
        means = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)
        return means, means


class Corners(nn.Module):
    """The four corner pixels."""

    def forward(self, images):
        return images.mean(1)[:, ::7, ::7].flatten(1)


def make_reference(name, network, class_names=()):
    vectors = np.random.default_rng(0).normal(0.5, 0.2, size=(30, 4)).astype(np.float32)
    return Reference(FeatureNetwork(name, network, class_names), ImageFeatures(vectors))


@pytest.fixture
def evaluator():
    quadrants = make_reference("quadrants", Quadrants(), ("cat", "dog", "owl", "emu"))
    return Evaluator(ImageData(DataConfig()), {"quadrants": quadrants}, 0.0)


def test_the_figures_are_those_of_the_folders_images(class_pipeline, tmp_path, evaluator):
    conditions = Conditions(("dog", 0))
    summary = sample_to_folder(class_pipeline, tmp_path, 12, 2, ThresholdExit(0.5), 0, conditions)
    Image.new("L", (8, 8), 77).save(image_path(tmp_path, 5))

    evaluation = evaluate_folder(tmp_path, summary, evaluator)
    pixels = torch.stack([torch.tensor(np.array(Image.open(image_path(tmp_path, k)))) for k in range(12)])
    vectors, _ = Quadrants()(pixels[:, None] / 255)
    real = evaluator.first.real.vectors
    chosen = real[np.random.default_rng(0).permutation(30)[:12]]
    assert evaluation.first.frechet == pytest.approx(frechet_distance(vectors.numpy(), real), rel=1e-5)
    assert evaluation.first.kernel == pytest.approx(kernel_distance(vectors.numpy(), chosen), rel=1e-4)
    assert (evaluation.first.precision, evaluation.first.recall) == precision_recall(vectors.numpy(), chosen)
    assert evaluation.first.class_agreement == np.mean([vectors[k].argmax() == (1, 0)[k % 2] for k in range(12)])
    assert evaluation.layer_fraction == summary.totals.layer_fraction < 1
    assert evaluation.images_per_second == pytest.approx(12 / summary.seconds)
    assert evaluation.constant_images == (5,)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert saved["networks"]["quadrants"]["frechet"] == evaluation.first.frechet
    assert saved["request"]["conditions"]["classes"] == ["dog", "cat"]

    console = Console(width=100)
    with console.capture() as printed:
        console.print(evaluation_table(evaluation))
    assert "1 images: 000005" in printed.get()


def test_several_networks_say_together_what_each_says_alone(class_pipeline, tmp_path, evaluator):
    summary = sample_to_folder(class_pipeline, tmp_path, 12, 2, ThresholdExit(0.5), 0, Conditions(("dog", 0)))
    references = {**evaluator.references, "corners": make_reference("corners", Corners())}
    together = evaluate_folder(tmp_path, summary, replace(evaluator, references=references))
    for name, reference in references.items():
        alone = evaluate_folder(tmp_path, summary, replace(evaluator, references={name: reference}))
        assert together.networks[name] == alone.first
    assert together.networks["corners"].class_agreement is None
    table = evaluation_table(together)
    assert [column.header for column in table.columns] == ["", "quadrants", "corners"]


def test_saturation_is_that_of_the_files(tmp_path, evaluator):
    pipeline = AdaDiffPipeline(make_model(in_channels=3), DiffusionConfig().build())
    summary = sample_to_folder(pipeline, tmp_path, 6, 1, ThresholdExit(0.5), 0, Conditions())
    evaluation = evaluate_folder(tmp_path, summary, replace(evaluator, real_saturation=0.25))
    images = np.stack([np.array(Image.open(image_path(tmp_path, k))) for k in range(6)]) / 255
    wanted = np.mean([colorsys.rgb_to_hsv(*pixel)[1] for pixel in images.reshape(-1, 3)])
    assert evaluation.saturation == pytest.approx(wanted, rel=1e-5)
    console = Console(width=100)
    with console.capture() as printed:
        console.print(evaluation_table(evaluation))
    assert f"{wanted:.3f} (real: 0.250)" in printed.get()


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


def test_prompts_are_scored_with_their_images(text_pipeline, tmp_path, evaluator):
    scorer = load_clip(str(make_whole_clip(tmp_path)))
    conditions = Conditions(prompts=("a cat", "dog"))
    summary = sample_to_folder(text_pipeline, tmp_path / "out", 5, 2, ThresholdExit(0.5), 0, conditions)
    evaluation = evaluate_folder(tmp_path / "out", summary, replace(evaluator, clip=scorer))
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


def test_a_clip_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="neither a folder with a CLIP model"):
        load_clip(str(tmp_path))

"""Samples of a stock pipeline that are not finite, wherever they come up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import adadiff
from adadiff.sampling.finite import NonFiniteImagesError
from adadiff.stock import StockSampler
from tests.stock.tiny import build

CALL = {"num_inference_steps": 4}


def make_pipe(dtype: torch.dtype) -> Any:
    """A DiT whose predictions are NaN."""
    pipe = build("dit").pipe
    torch.nn.Module.to(pipe.transformer, dtype)
    torch.nn.Module.to(pipe.vae, dtype)
    with torch.no_grad():
        pipe.transformer.proj_out_2.bias.fill_(torch.nan)
    return pipe


@pytest.mark.parametrize(
    "make",
    [
        lambda pipe: adadiff.calibrate(pipe, [1, 2], compute=0.6, samples=8, **CALL),
        lambda pipe: adadiff.adapt(pipe, [1, 2], samples=4, **CALL),
        lambda pipe: StockSampler(pipe, [1, 2], arguments=CALL)([0], "pt"),
    ],
    ids=["calibrate", "adapt", "sample"],
)
def test_samples_that_are_not_finite_are_one_error_that_names_the_precision(make: Callable[[Any], Any]):
    with pytest.raises(
        NonFiniteImagesError, match=r"1 of 1 images are NaN .* the model computes in torch.bfloat16; try"
    ):
        make(make_pipe(torch.bfloat16))


def test_full_precision_is_not_blamed():
    with pytest.raises(
        NonFiniteImagesError, match=r"\(at positions 0, 1\): try float32, another scheduler or more steps"
    ):
        StockSampler(make_pipe(torch.float32), [1, 2], arguments=CALL)(range(2))


@pytest.mark.parametrize(
    ("prompts", "arguments", "message"),
    [
        ("cat", {}, "give a list of prompts"),
        ({"class_labels": 1}, {}, "give a list of prompts"),
        (None, {}, "give a list of prompts"),
        ([], {}, "give a list of prompts"),
        (
            [{"class_labels": 1}, {"guidance_scale": 2.0}],
            {},
            "name the same arguments each: the first ones name class_la",
        ),
        ([{"colour": 1}], {}, "DiTPipeline takes no argument colour"),
        ([{"class_labels": 1, "output_type": "pil"}], {}, "output_type cannot be given"),
        ([1, 2], {"class_labels": 3}, "class_labels is given twice"),
    ],
)
def test_prompts_that_make_no_sense_are_one_line(prompts: Any, arguments: dict[str, Any], message: str):
    with pytest.raises(adadiff.InputError, match=message):
        StockSampler(build("dit").pipe, prompts, arguments=arguments)


def test_tensors_are_stacked_and_lists_joined():
    pipe = build("dit").pipe
    one, other = torch.zeros(2, 3), torch.ones(2, 3)
    sampler = StockSampler(pipe, [{"class_labels": one}, {"class_labels": other}])
    assert torch.equal(sampler._conditions([0, 1, 2])["class_labels"], torch.stack([one, other, one]))
    sampler = StockSampler(pipe, [{"class_labels": [one]}, {"class_labels": [other[:1]]}])
    assert [len(each) for each in sampler._conditions([0, 1])["class_labels"]] == [2, 1]
    assert StockSampler(pipe, [3, 4])._conditions([1, 2]) == {"class_labels": [4, 3]}


def test_images_have_their_channels_first_whatever_the_pipeline_returns():
    pipe = build("dit").pipe
    sampler = StockSampler(pipe, [1, 2], arguments=CALL)
    images = pipe(class_labels=[1], output_type="np", generator=torch.Generator().manual_seed(0), **CALL).images
    wanted = torch.from_numpy(images).permute(0, 3, 1, 2)
    assert torch.equal(sampler([0], "pt"), wanted)
    assert sampler([0], "latent").shape == wanted.shape

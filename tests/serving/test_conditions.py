"""What images shall show is encoded once for all requests that say the same, and checked without a text encoder."""

from __future__ import annotations

import pytest
import torch

from adadiff.serving.conditions import REMEMBERED, Condition, ConditionEncoder
from adadiff.utils.errors import InputError


def test_classes_are_those_of_the_pipeline_and_the_null_class_where_it_is_guided(class_pipeline):
    encoder = ConditionEncoder(class_pipeline)
    plain, nothing = encoder.tensors(Condition("owl"))
    assert (plain["class_labels"].tolist(), nothing) == ([2], {})
    assert encoder.tensors(Condition("owl", guided=True))[1]["class_labels"].tolist() == [3]


def test_a_text_is_encoded_once_while_it_is_among_the_last(text_pipeline, monkeypatch):
    encoded, encode = [], type(text_pipeline.text_encoder).encode
    monkeypatch.setattr(
        type(text_pipeline.text_encoder), "encode", lambda self, texts: encoded.extend(texts) or encode(self, texts)
    )
    encoder = ConditionEncoder(text_pipeline)
    encoder.check(Condition(prompt="a cat"))
    assert not encoded
    first, again = (encoder.tensors(Condition(prompt="a cat"))[0]["encoder_hidden_states"] for _ in range(2))
    assert encoded == ["a cat"]
    assert torch.equal(first, again)
    for k in range(REMEMBERED):
        encoder.tensors(Condition(prompt=f"cat {k}"))
    encoder.tensors(Condition(prompt="a cat"))
    assert encoded.count("a cat") == 2


def test_what_guidance_leads_away_from_is_encoded_once_for_all_prompts(text_pipeline, monkeypatch):
    encoded, encode = [], type(text_pipeline.text_encoder).encode
    monkeypatch.setattr(
        type(text_pipeline.text_encoder), "encode", lambda self, texts: encoded.extend(texts) or encode(self, texts)
    )
    encoder = ConditionEncoder(text_pipeline)
    nulls = [encoder.tensors(Condition(prompt=prompt, guided=True))[1] for prompt in ("a cat", "a dog")]
    other = encoder.tensors(Condition(prompt="a cat", negative_prompt="a dog", guided=True))[1]
    assert encoded == ["a cat", "", "a dog", "a dog"]
    wanted = text_pipeline.null_conditions(1)["encoder_hidden_states"]
    assert all(torch.equal(null["encoder_hidden_states"], wanted) for null in nulls)
    assert not torch.equal(other["encoder_hidden_states"], wanted)


def test_a_failure_is_not_remembered(text_pipeline, monkeypatch):
    encoder, encode = ConditionEncoder(text_pipeline), type(text_pipeline.text_encoder).encode

    def fail(self, texts):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(text_pipeline.text_encoder), "encode", fail)
    with pytest.raises(RuntimeError):
        encoder.tensors(Condition(prompt="a cat"))
    monkeypatch.setattr(type(text_pipeline.text_encoder), "encode", encode)
    assert encoder.tensors(Condition(prompt="a cat"))[0]["encoder_hidden_states"].isfinite().all()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition(), "the model needs a class label"),
        (Condition("cow"), "no class 'cow'"),
        (Condition("cat", prompt="a cat"), "the model takes no prompts"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(class_pipeline, condition, message):
    with pytest.raises(InputError, match=message):
        ConditionEncoder(class_pipeline).check(condition)

"""Labels and captions of images as tensors."""

import pytest
import torch

from adadiff import InputError
from adadiff.conditioning import (
    ByteTextEncoder,
    ClassCondition,
    FeatureCondition,
    TokenCondition,
    TransformersTextEncoder,
    Unconditional,
)


def test_without_a_condition_nothing_is_told():
    assert Unconditional().of({"label": 1}) == Unconditional().nothing() == {}


def test_classes_and_the_null_class():
    condition = ClassCondition([0, 1, 2], 4, null_class=3)
    assert condition.of({"label": 2})["class_labels"] == 2
    assert condition.nothing()["class_labels"] == 3


@pytest.mark.parametrize(("labels", "null_class"), [([0, 3], 3), ([0, 4], None), ([-1], 3), ([None], 3)])
def test_labels_outside_the_table_are_named(labels, null_class):
    with pytest.raises(InputError, match=f"label {labels[-1]}"):
        ClassCondition(labels, 4, null_class)


def test_tokens_are_the_encoders():
    encoder = ByteTextEncoder(width=4, length=2)
    condition = TokenCondition(encoder)
    assert torch.equal(condition.of({"caption": "owl"})["tokens"], encoder.tokenize(["owl"])[0])
    assert not condition.nothing()["tokens"].any()


def test_features_are_computed_once_and_kept(clip_folder, tmp_path, monkeypatch):
    encoder = TransformersTextEncoder.from_pretrained(clip_folder)
    captions = ["owl", "rocket", "owl"]
    calls = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda captions: calls.extend(captions) or encode(captions))
    for _ in range(2):
        condition = FeatureCondition(encoder, captions, tmp_path / "cache")
        for caption in ("owl", "rocket"):
            features = condition.of({"caption": caption})["encoder_hidden_states"]
            torch.testing.assert_close(features, encode([caption])[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(condition.nothing()["encoder_hidden_states"], encode([""])[0], rtol=1e-3, atol=1e-3)
    assert sorted(calls) == ["", "owl", "rocket"]
    other = TransformersTextEncoder.from_pretrained(clip_folder)
    other.text_model.load_state_dict({name: 2 * value for name, value in other.text_model.state_dict().items()})
    features = FeatureCondition(other, captions, tmp_path / "cache").of({"caption": "owl"})["encoder_hidden_states"]
    torch.testing.assert_close(features, other.encode(["owl"])[0], rtol=1e-3, atol=1e-3)


def test_features_that_are_nan_are_refused(clip_folder, tmp_path):
    encoder = TransformersTextEncoder.from_pretrained(clip_folder)
    for parameter in encoder.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(InputError, match="features are NaN"):
        FeatureCondition(encoder, ["owl"], tmp_path / "cache")

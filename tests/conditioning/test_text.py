"""Text encoders."""

import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from adadiff import InputError
from adadiff.conditioning import ByteTextEncoder, TransformersTextEncoder
from adadiff.conditioning.text import byte_ngrams


@pytest.fixture
def byte_encoder():
    torch.manual_seed(0)
    return ByteTextEncoder(width=12, length=4).eval()


def test_a_word_is_its_ngrams_and_itself():
    assert byte_ngrams("é") == [b"<\xc3\xa9>", b"<\xc3\xa9", b"\xc3\xa9>", b"<\xc3\xa9>"]
    assert [gram.decode() for gram in byte_ngrams("owl")] == ["<owl>", "<ow", "owl", "wl>", "<owl", "owl>", "<owl>"]


def test_tokens_are_rows_of_the_table_and_zero_where_there_is_nothing(byte_encoder):
    tokens = byte_encoder.tokenize(["red Owl", "", "one two three four five", "x" * 99])
    assert tokens.shape == (4, 4, 40)
    assert [int((word > 0).sum()) for word in tokens[0]] == [7, 7, 0, 0]
    assert torch.equal(tokens[0, 1], byte_encoder.tokenize(["owl"])[0, 0])
    assert not tokens[1].any()
    assert (tokens[2, :, 0] > 0).all()
    assert (tokens[3, 0] > 0).all()
    assert tokens.max() <= 4096
    wanted = zlib.crc32(b"<red>") % 4096 + 1
    assert tokens[0, 0, 0] == wanted


def test_composed_and_decomposed_accents_are_the_same_word(byte_encoder):
    composed, decomposed = "Caf\u00e9 \u00c5", "Cafe\u0301 A\u030a"
    assert torch.equal(byte_encoder.tokenize([composed]), byte_encoder.tokenize([decomposed]))
    assert not torch.equal(byte_encoder.tokenize([composed]), byte_encoder.tokenize(["cafe a"]))


@torch.no_grad()
def test_a_word_is_the_normalised_mean_of_its_rows(byte_encoder):
    features = byte_encoder.encode(["red owl"])[0]
    rows = byte_encoder.tokenize(["owl"])[0, 0]
    mean = byte_encoder.embed.weight[rows[rows > 0]].mean(0)
    wanted = (mean - mean.mean()) / mean.std(correction=0)
    torch.testing.assert_close(features[1], wanted, rtol=1e-3, atol=1e-3)
    assert not features[2:].any()


def test_features_depend_on_every_byte_and_not_on_the_batch(byte_encoder):
    captions = ["rocket", "rockex", ""]
    features = byte_encoder.encode(captions)
    assert features.shape == (3, *byte_encoder.shape)
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    for k, caption in enumerate(captions):
        torch.testing.assert_close(byte_encoder.encode([caption])[0], features[k])


def test_saved_and_loaded_it_encodes_the_same(byte_encoder, tmp_path):
    byte_encoder.save_pretrained(tmp_path)
    loaded = ByteTextEncoder.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(["owl"]), byte_encoder.encode(["owl"]))


def test_a_transformers_model_gives_its_last_hidden_state(clip_folder):
    encoder = TransformersTextEncoder.from_pretrained(clip_folder)
    assert encoder.shape == (9, 8)
    tokens = CLIPTokenizer.from_pretrained(clip_folder)(
        ["owl", ""], padding="max_length", max_length=9, return_tensors="pt"
    )
    wanted = CLIPTextModel.from_pretrained(clip_folder)(tokens.input_ids).last_hidden_state
    torch.testing.assert_close(encoder.encode(["owl", ""]), wanted)
    assert encoder.encode(["a long caption that is cut"]).shape == (1, 9, 8)
    assert not any(parameter.requires_grad for parameter in encoder.train().parameters())
    assert not encoder.text_model.training


def test_a_transformers_model_is_saved_with_its_tokenizer_and_length(clip_folder, tmp_path):
    encoder = TransformersTextEncoder.from_pretrained(clip_folder, length=5)
    encoder.save_pretrained(tmp_path / "saved")
    loaded = TransformersTextEncoder.from_pretrained(tmp_path / "saved")
    assert loaded.shape == (5, 8)
    torch.testing.assert_close(loaded.encode(["owl"]), encoder.encode(["owl"]))


def test_a_damaged_transformers_model_is_refused(clip_folder):
    path = clip_folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "layers.1.mlp.fc1.weight" in name)
    save_file({key: value for key, value in weights.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="1 tensors are missing"):
        TransformersTextEncoder.from_pretrained(clip_folder)
    weights[name][0, 0] = torch.inf
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"NaN or infinite, in .*fc1\.weight"):
        TransformersTextEncoder.from_pretrained(clip_folder)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="neither a folder with a text model"):
        TransformersTextEncoder.from_pretrained(clip_folder)


@pytest.mark.parametrize("name", ["no/such-model", "./missing"])
def test_a_missing_model_is_named(name):
    with pytest.raises(InputError, match=name):
        TransformersTextEncoder.from_pretrained(name)

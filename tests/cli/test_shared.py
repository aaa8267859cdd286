"""Files of prompts, in any encoding of Unicode, and devices."""

from __future__ import annotations

import pytest
import torch

from adadiff.cli.shared import chosen_prompts, device_of
from adadiff.utils.errors import InputError
from tests.cli.conftest import run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "is not text in UTF-8"),
        (b"r\0e\0d\0", "null characters"),
        (b"\xef\xbb\xbf \n\n", "holds no prompts"),
        (None, "there is no file"),
    ],
)
def test_a_bad_file_of_prompts_is_named(text_pipeline, tmp_path, capsys, content, message):
    text_pipeline.save_pretrained(tmp_path / "model")
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(SystemExit):
        run(f"sample {tmp_path}/model -n 1 --steps 2 --prompts {tmp_path}/prompts.txt --out {tmp_path}/out")
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        "sample some/one --prompts {tmp}/none.txt --out {tmp}/out",
        "calibrate some/one --compute 0.6 --prompts {tmp}/none.txt --out {tmp}/out",
        "adapt some/one --prompts {tmp}/none.txt --out {tmp}/out",
        "tune some/one --data digits --prompts {tmp}/none.txt --out {tmp}/out",
        "sample {tmp}/model --prompts {tmp}/none.txt --out {tmp}/out",
        "calibrate {tmp}/model --compute 0.6 --prompts {tmp}/none.txt",
        "tune {tmp}/model --data digits --prompts {tmp}/none.txt --out {tmp}/out",
    ],
)
def test_prompts_are_read_before_the_model_is_loaded(tmp_path, capsys, words):
    with pytest.raises(SystemExit):
        run(words.format(tmp=tmp_path))
    assert "there is no file" in capsys.readouterr().err  # nor is there a model


def test_prompts_are_the_same_in_every_unicode_encoding(tmp_path):
    text = "red apple\r\n\r\n  Caf\u00e9 \u2603\r\n"
    contents = (
        text.encode(),
        text.encode("utf-8-sig"),
        text.encode("utf-16"),
        text.replace("\r", "").encode(),
        b"\xef\xbb\xbfred apple\n" + "Caf\u00e9 \u2603".encode("utf-8-sig"),
    )
    for content in contents:
        (tmp_path / "prompts.txt").write_bytes(content)
        assert chosen_prompts((), tmp_path / "prompts.txt") == ("red apple", "Caf\u00e9 \u2603")


@pytest.mark.parametrize(
    ("name", "available", "message"),
    [
        ("cuda", False, "there is no device 'cuda': no CUDA device was found; choose cpu, or auto"),
        ("cuda:9", True, "there is no device 'cuda:9' on this machine: choose cpu, or cuda if available"),
        ("cudda", False, "there is no device 'cudda' on this machine: choose cpu, or cuda if available"),
    ],
)
def test_a_device_that_is_not_there_is_named(monkeypatch, name, available, message):
    def not_there(*_, **__):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "empty", not_there)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    with pytest.raises(InputError) as refusal:
        device_of(name)
    assert str(refusal.value) == message

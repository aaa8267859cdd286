"""Files of prompts, in any encoding of Unicode."""

from __future__ import annotations

import pytest

from adadiff.cli.shared import chosen_prompts
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

"""Captions and labels beside images: metadata files, and a text for each image."""

import codecs
import json

import pytest

from adadiff import InputError
from adadiff.data import DataConfig, ImageData
from tests.data.conftest import write_image


@pytest.fixture
def pair(photos):
    """Two images, a.png and b.png."""
    for name in "ab":
        write_image(photos / f"{name}.png")
    return photos


def open_folder(folder, condition=None, **changes):
    return ImageData(DataConfig(source=str(folder), size=4, **changes), condition=condition)


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_cells_of_csv_files_stay_the_strings_they_are(pair):
    rows = b'file_name,text\r\nb.png,007\r\na.png,"NA, ""null""\ntwo lines"\r\n'
    (pair / "metadata.csv").write_bytes(codecs.BOM_UTF8 + rows)
    data = open_folder(pair, "text")
    assert data.captions() == ['NA, "null"\ntwo lines', "007"]
    assert data[1]["caption"] == "007"


def test_metadata_lie_in_any_folder_and_give_labels_or_leave_them_to_the_folders(photos):
    for name in ("cat/1.png", "cat/more/2.png", "dog/1.png"):
        write_image(photos / name)
    cats = [{"file_name": "1.png", "text": "x"}, {"file_name": "more/2.png", "text": "y"}]
    write_rows(photos / "cat/metadata.jsonl", *cats)
    write_rows(photos / "dog/metadata.jsonl", {"file_name": "./1.png", "text": "z", "kind": "b"})
    data = open_folder(photos)
    assert (data.captions(), data.labels(), data.class_names) == (["x", "y", "z"], [0, 0, 1], ["cat", "dog"])
    more = [{"kind": "b", "boxes": [1, "mixed"]}, {"kind": "a"}]
    write_rows(photos / "cat/metadata.jsonl", *({**row, **columns} for row, columns in zip(cats, more, strict=True)))
    data = open_folder(photos, label_column="kind")
    assert (data.labels(), data.class_names) == ([1, 0, 1], ["a", "b"])


def test_metadata_at_the_top_describe_all_splits(photos):
    for name in ("train/a.png", "test/b.png"):
        write_image(photos / name)
    (photos / "metadata.csv").write_text("file_name,text\ntrain/a.png,one\ntest/b.png,two\n")
    assert open_folder(photos).captions() == ["one"]
    assert open_folder(photos, split="test").captions() == ["two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metadata.csv",
            "file_name,text\na.png,x\nb.png,y\nc.png,z\n",
            "line 4 .*'c.png', which is not among",
        ),
        ("metadata.csv", "file_name,text\na.png,x\n", r"b\.png has no row in .*metadata\.csv"),
        ("metadata.csv", "file_name,text\na.png,x\nb.png,y\n./a.png,z\n", "line 4 .* has a row already"),
        (
            "metadata.csv",
            "file_name,text\na.png,a red, round apple\nb.png,y\n",
            "line 2 .*3 cells.*commas in quotes",
        ),
        ("metadata.csv", "file_name;text\na.png;x\n", "must name the columns.*'file_name;text'"),
        ("metadata.csv", "file_name,text,text\na.png,x,y\n", "must name the columns, each once"),
        ("metadata.csv", "", "must name the columns"),
        ("metadata.csv", 'file_name,text\na.png,"x\n', "is not CSV"),
        ("metadata.csv", "file_name,image\na.png,x\nb.png,y\n", "column 'image', the name of the images' column"),
        ("metadata.csv", b"file_name,text\na.png,caf\xe9\n", "not text in UTF-8"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n{"file_name"', "line 2 .*is not JSON"),
        ("metadata.jsonl", "[1]\n", "line 1 .*is not a JSON object"),
        ("metadata.jsonl", '{"file": "a.png"}\n', "line 1 .*has no file_name"),
        ("metadata.jsonl", '{"file_name": 3}\n', "line 1 .*has no file_name"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 1}\n{"file_name": "b.png", "text": "x"}', "mixes types"),
    ],
)
def test_what_is_wrong_with_metadata_is_named_in_one_line(pair, name, content, message):
    (pair / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        open_folder(pair)
    assert "\n" not in str(caught.value)


def test_a_text_beside_each_image_is_its_caption(pair):
    (pair / "a.txt").write_text("a red\n  apple\n")
    (pair / "b.txt").write_bytes("Café".encode("utf-16"))
    (pair / "notes.txt").write_text("no caption")
    data = open_folder(pair, "text", caption_column="words")
    assert data.captions() == ["a red apple", "Café"]
    assert data.left_out == {"files of other types": ["notes.txt"]}


def test_a_missing_text_is_named_or_its_image_left_out(pair):
    (pair / "a.txt").write_text("an apple")
    with pytest.raises(InputError, match=r"1 of 2 rows have no caption, the first is .*b\.png: .*on-error skip"):
        open_folder(pair, "text")
    data = open_folder(pair, "text", on_error="skip")
    assert data.captions() == ["an apple"]
    assert data.left_out["rows without caption"] == [str(pair / "b.png")]


def test_texts_are_read_only_where_captions_are_wanted(pair):
    (pair / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"a\.txt is not text in UTF-8"):
        open_folder(pair, "text")
    assert len(open_folder(pair, "none")) == 2

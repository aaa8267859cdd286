"""Parquet files by split, the identity of data, and what their descriptions say."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadiff import InputError
from adadiff.data import DataConfig, ImageData
from adadiff.data.listing import parquet_split
from tests.data.conftest import encoded, write_image


def write_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def rows(source, **changes):
    return len(ImageData(DataConfig(source=str(source), **changes)))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("data/train-00000-of-00001-0a1b2c.parquet", "data/test-00000-of-00001-0a1b2c.parquet"),
        ("train.parquet", "test_0.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("coco2014-train.parquet", "coco2014-test.parquet"),
        ("Training/a/0000.parquet", "Eval/a/0000.parquet"),
    ],
)
def test_parquet_files_are_split_by_their_names(tmp_path, train, test):
    write_parquet(tmp_path / train, image=[encoded()] * 3)
    write_parquet(tmp_path / test, image=[encoded()] * 2)
    assert (rows(tmp_path), rows(tmp_path, split="train"), rows(tmp_path, split="test")) == (3, 3, 2)
    with pytest.raises(InputError, match="no split 'nonsense': there are test, train"):
        rows(tmp_path, split="nonsense")


def test_files_that_name_no_split_are_all_of_train(tmp_path):
    for name in ("a", "constraint", "trainval"):
        write_parquet(tmp_path / f"{name}.parquet", image=[encoded()])
    assert rows(tmp_path) == rows(tmp_path, split="train") == 3
    with pytest.raises(InputError, match="no split 'test': the only one is train"):
        rows(tmp_path, split="test")
    write_parquet(tmp_path / "test.parquet", image=[encoded()])
    with pytest.raises(InputError, match=r"name a split and others that do not, a\.parquet among them"):
        rows(tmp_path)


def test_a_file_that_names_two_splits_is_refused(tmp_path):
    with pytest.raises(InputError, match="names the splits test and train"):
        parquet_split(tmp_path / "train-test.parquet", tmp_path)


@pytest.mark.parametrize(
    ("name", "split"), [("test.parquet", "test"), ("t [1].parquet", "train"), ("val-0.parquet", "validation")]
)
def test_a_single_file_is_of_the_split_that_it_names(tmp_path, name, split):
    write_parquet(tmp_path / name, image=[encoded()])
    write_parquet(tmp_path / "t 1.parquet", image=[encoded()] * 5)
    assert rows(tmp_path / name) == rows(tmp_path / name, split=split) == 1
    with pytest.raises(InputError, match=f"no split 'nonsense': the only one is {split}"):
        rows(tmp_path / name, split="nonsense")


def test_relative_names_are_exact_in_a_current_folder_of_any_name(tmp_path, monkeypatch):
    for folder, images in (("here [1]", 2), ("here 1", 5)):
        write_parquet(tmp_path / folder / "a.parquet", image=[encoded()] * images)
    monkeypatch.chdir(tmp_path / "here [1]")
    assert rows(".") == rows("a.parquet") == 2


def test_the_only_split_of_a_folder_is_taken(tmp_path):
    write_parquet(tmp_path / "test.parquet", image=[encoded()])
    assert rows(tmp_path) == 1


def test_digits_know_their_splits():
    assert rows("digits") == rows("digits", split="train") == 1437
    assert rows("digits", split="test") == 360
    with pytest.raises(InputError, match="digits has no split 'all': there are test, train"):
        rows("digits", split="all")


# ---------------------------------------------------------------------------------------------------------------------
# Identity


def identity(source, **changes):
    return ImageData(DataConfig(source=str(source), **changes)).identity()


@pytest.fixture
def classes(photos):
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        write_image(photos / name)
    return photos


def test_copied_data_are_the_same_data(classes, tmp_path):
    shutil.copytree(classes, tmp_path / "copy")
    os.utime(tmp_path / "copy/cat/a.png", (1, 1))
    assert identity(classes) == identity(tmp_path / "copy")
    assert identity(classes)["items"] == 3
    assert identity(classes)["classes"] == ["cat", "dog"]


def test_changed_renamed_added_and_removed_files_make_other_data(classes):
    seen = [identity(classes)["fingerprint"]]

    def changed():
        seen.append(identity(classes)["fingerprint"])
        return len(set(seen)) == len(seen)

    write_image(classes / "cat/a.png", (200, 0, 0))
    assert changed()
    (classes / "cat/b.png").rename(classes / "cat/z.png")
    assert changed()
    write_image(classes / "dog/new.png")
    assert changed()
    (classes / "dog/c.png").unlink()
    assert changed()
    (classes / "dog").rename(classes / "owl")
    assert changed()


@pytest.mark.parametrize("place", [20, 20_000, 39_990])
def test_large_files_are_told_apart_by_samples_of_their_content(photos, place):
    content = bytearray(encoded()["bytes"].ljust(40_000, b"\0"))
    (photos / "a.png").write_bytes(content)
    before = identity(photos)
    content[place] ^= 255
    (photos / "a.png").write_bytes(content)
    assert identity(photos) != before


def test_captions_and_rows_left_out_belong_to_the_identity(photos):
    for name in "ab":
        write_image(photos / f"{name}.png")
        (photos / f"{name}.txt").write_text(f"an image of {name}")
    before = identity(photos)
    (photos / "b.txt").write_text("another image")
    assert identity(photos) != before
    (photos / "b.png").write_bytes(b"broken")
    broken, skipped = identity(photos), identity(photos, on_error="skip")
    assert skipped["items"] == 1
    assert broken["fingerprint"] != skipped["fingerprint"]


def test_the_splits_of_digits_are_different_data():
    assert identity("digits") == identity("digits", split="train") != identity("digits", split="test")

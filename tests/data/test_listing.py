"""Folders: what counts as an image, splits, classes, links, and our own outputs."""

import dataclasses
import json
import os

import pytest
from PIL import Image

from adadiff import InputError
from adadiff.comparison import run as comparison
from adadiff.comparison.config import CompareConfig
from adadiff.data import DataConfig, ImageData, latents, listing
from adadiff.sampling import folder as sampling
from adadiff.training import loop
from adadiff.training.config import TrainConfig
from tests.data.conftest import encoded, write_image
from tests.data.test_sources import write_parquet


def open_folder(folder, **changes):
    return ImageData(DataConfig(source=str(folder), size=4, **changes))


def names(data, folder):
    return [os.path.relpath(data._name(k), folder) for k in range(len(data))]


def test_a_file_or_class_named_after_a_split_hides_no_other(photos):
    for name in ("cat", "dog", "train"):
        write_image(photos / f"flat/{name}.png")
        write_image(photos / f"classes/{name}/1.png")
    assert names(open_folder(photos / "flat"), photos / "flat") == ["cat.png", "dog.png", "train.png"]
    assert open_folder(photos / "classes").class_names == ["cat", "dog", "train"]
    for name in ("boots", "training shoes", "training-shoes2"):
        write_image(photos / f"shoes/{name}/1.png")
    assert open_folder(photos / "shoes").class_names == ["boots", "training shoes", "training-shoes2"]


def test_split_folders_are_chosen_by_any_of_their_names(photos):
    for name, images in (("Training/cat", 3), ("Training/dog", 1), ("val/cat", 2), ("labels", 0)):
        (photos / name).mkdir(parents=True)
        for k in range(images):
            write_image(photos / name / f"{k}.png")
    (photos / "labels/notes.md").write_text("for the split val too")
    train = open_folder(photos)
    assert train.class_names == ["cat", "dog"]
    assert train.labels() == [0, 0, 0, 1]
    assert train.describe()[0].endswith(", split train")
    for split in ("val", "valid", "validation"):
        assert names(open_folder(photos, split=split), photos) == ["val/cat/0.png", "val/cat/1.png"]
    with pytest.raises(InputError, match="no split 'test': there are train, validation"):
        open_folder(photos, split="test")


def test_the_default_split_is_train_or_the_only_one(photos):
    write_image(photos / "test/a.png")
    assert len(open_folder(photos)) == 1
    write_image(photos / "val/a.png")
    with pytest.raises(InputError, match="no split train: there are test, validation"):
        open_folder(photos)
    write_image(photos / "testing/a.png")
    with pytest.raises(InputError, match="two folders for the split test, test and testing"):
        open_folder(photos)


def test_a_folder_without_splits_has_train_alone(photos):
    write_image(photos / "cat/a.png")
    assert len(open_folder(photos, split="train")) == 1
    with pytest.raises(InputError, match="no split 'test': the only one is train"):
        open_folder(photos, split="test")


def test_images_deeper_down_belong_to_their_first_folder(photos):
    write_image(photos / "cat/a.png")
    write_image(photos / "cat/more/even more/b.png")
    write_image(photos / "dog/older/c.png")
    data = open_folder(photos)
    assert data.class_names == ["cat", "dog"]
    assert data.labels() == [0, 0, 1]


def test_one_class_folder_is_a_class(photos):
    write_image(photos / "cat/a.png")
    assert open_folder(photos).class_names == ["cat"]


def test_an_image_outside_of_the_class_folders_is_used_and_named_when_labels_are_asked_for(photos):
    write_image(photos / "cat/a.png")
    write_image(photos / "stray.png")
    data = open_folder(photos)
    assert len(data) == 2
    assert data.class_names is None
    with pytest.raises(InputError, match=r"stray\.png lies outside of the class folders"):
        data.labels()
    with pytest.raises(InputError, match=r"stray\.png lies outside"):
        ImageData(DataConfig(source=str(photos)), condition="class")


def test_what_is_left_out_is_named_with_the_reason(photos):
    write_image(photos / "cat/a.PNG")
    (photos / "empty").mkdir()
    for name in ("cat/b.heic", "cat/noextension", "cat/notes.txt", "cat/.DS_Store", ".thumbs/a.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"")
    (photos / "cat/gone.png").symlink_to(photos / "nowhere.png")
    data = open_folder(photos)
    assert {reason: sorted(names) for reason, names in data.left_out.items()} == {
        "hidden files": [".thumbs", "cat/.DS_Store"],
        "broken links": ["cat/gone.png"],
        "files of other types": ["cat/b.heic", "cat/noextension", "cat/notes.txt"],
        "folders without images": ["empty"],
    }
    assert "classes (1): cat 1" in data.describe()
    assert "left out 3 files of other types: cat/b.heic, cat/noextension, cat/notes.txt" in data.describe()


def test_long_lists_are_cut_and_odd_names_stay_in_one_line(photos):
    write_image(photos / "a.png")
    for k in range(9):
        (photos / f"{k}\n.heic").write_bytes(b"")
    line = open_folder(photos).describe()[1]
    assert line == r"left out 9 files of other types: 0\n.heic, 1\n.heic, 2\n.heic, 3\n.heic, 4\n.heic, ..."


def test_a_name_that_is_not_utf8_is_left_out(photos):
    write_image(photos / "a.png")
    try:
        (photos / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded()["bytes"])
    except OSError:
        pytest.skip("the file system takes no such names")
    data = open_folder(photos)
    assert len(data) == 1
    assert data.describe()[1] == r"left out 1 files with names that are not UTF-8: caf\udce9.png"


def test_links_to_files_and_folders_are_followed_once(photos, tmp_path):
    write_image(tmp_path / "store/cats/a.png")
    write_image(tmp_path / "store/b.png")
    (photos / "cat").symlink_to(tmp_path / "store/cats")
    (photos / "dog").mkdir()
    (photos / "dog/b.png").symlink_to(tmp_path / "store/b.png")
    (photos / "dog/again").symlink_to(photos)
    data = open_folder(photos)
    assert data.class_names == ["cat", "dog"]
    assert data.labels() == [0, 1]
    assert data.left_out == {"links to a folder around them": ["dog/again"]}


def test_brackets_stars_and_question_marks_are_part_of_the_name(photos):
    for name in ("set [12]", "set 1", "set *", "set ?"):
        write_image(photos / name / f"{name}.png")
        assert names(open_folder(photos / name), photos / name) == [f"{name}.png"]


def test_the_order_is_that_of_the_paths(photos):
    for name in ("b/1.png", "a/2.png", "a/10.png", "c.png"):
        write_image(photos / name)
    assert names(open_folder(photos), photos) == ["a/10.png", "a/2.png", "b/1.png", "c.png"]


@pytest.mark.parametrize("note", [*listing.OWN_NOTES, listing.MODEL])
def test_own_outputs_inside_the_source_are_left_out_and_refused_as_the_source(photos, note):
    write_image(photos / "a.png")
    write_image(photos / "runs/out/grid.png")
    write_image(photos / "runs/out/000000.png")
    kind, key = listing.OWN_NOTES.get(note, ("a model", "_class_name"))
    (photos / "runs/out" / note).write_text(json.dumps({key: "x"}))
    data = open_folder(photos)
    if kind == "samples":
        assert names(data, photos) == ["a.png", "runs/out/000000.png"]
        assert data.left_out["files made by adadiff"] == ["runs/out/grid.png"]
    else:
        assert names(data, photos) == ["a.png"]
        assert data.left_out == {"folders made by adadiff": ["runs/out"]}
        with pytest.raises(InputError, match=f"holds {kind}, not images"):
            listing.find_files(photos / "runs/out")


@pytest.mark.parametrize("content", ["{}", '{"images": [], "annotations": []}', "[]", "7", "half a", ""])
def test_other_files_of_our_names_are_not_taken_for_ours(photos, content):
    write_image(photos / "a.png")
    write_image(photos / "coco/grid.png")
    for folder in (photos, photos / "coco"):
        for note in listing.OWN_NOTES:
            if note != latents.DESCRIPTION:
                (folder / note).write_text(content)
    assert names(open_folder(photos), photos) == ["a.png", "coco/grid.png"]


def test_the_notes_are_called_as_their_makers_call_them():
    keys = {name: key for name, (_, key) in listing.OWN_NOTES.items()}
    assert keys.keys() == {loop.TRAIN_CONFIG, comparison.CONFIG, latents.DESCRIPTION, sampling.REQUEST}
    assert keys[loop.TRAIN_CONFIG] in {field.name for field in dataclasses.fields(TrainConfig)}
    assert keys[comparison.CONFIG] in {field.name for field in dataclasses.fields(CompareConfig)}


def test_formats_that_run_programs_or_cannot_be_decoded_are_no_images(photos):
    assert not {"EPS", "WMF", "MPEG", "HDF5", "GRIB"} & set(listing.openable_formats())
    assert {"PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"} <= set(listing.openable_formats())
    Image.new("RGB", (4, 4)).save(photos / "disguised.png", "EPS")
    with pytest.raises(InputError, match=r"disguised\.png"):
        open_folder(photos).check()


def test_a_folder_of_other_files_says_what_it_holds(photos):
    for name in ("a.heic", "b.heic"):
        (photos / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no images: it holds 2 files of other types \(a\.heic\)"):
        open_folder(photos)


def test_parquet_files_beside_images_are_the_source(photos):
    write_image(photos / "preview.png")
    (photos / "README.md").write_text("a data set")
    write_parquet(photos / "data.parquet", image=[encoded()] * 3)
    data = open_folder(photos)
    assert len(data) == 3
    assert data.left_out["files beside parquet files"] == ["preview.png"]

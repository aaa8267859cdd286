"""Images from every kind of source."""

import struct
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_digits

from adadiff import InputError
from adadiff.data import DataConfig, ImageData
from tests.data.conftest import write_image


def test_digits_are_scikit_learns_in_two_disjoint_parts():
    config = DataConfig(size=8, channels=1)
    train, test = ImageData(config), ImageData(DataConfig(size=8, channels=1, split="test"))
    assert len(train) + len(test) == 1797
    assert train.class_names == list("0123456789")
    wanted = {image.tobytes() for image in load_digits().images}
    seen = [
        ((item["image"][0] + 1) * 8).round().double().numpy().tobytes()
        for part in (train, test)
        for item in (part[k] for k in range(len(part)))
    ]
    assert set(seen) == wanted
    counts = np.bincount([test[k]["label"] for k in range(len(test))])
    assert counts.min() >= 34
    assert train[0]["image"].shape == (1, 8, 8)
    assert train[0]["image"].dtype == torch.float32


def test_class_folders_give_labels_and_flat_folders_none(tmp_path):
    write_image(tmp_path / "classes/cat/a.png", (255, 0, 0))
    write_image(tmp_path / "classes/dog/b.png", (0, 0, 255))
    data = ImageData(DataConfig(source=str(tmp_path / "classes"), size=4))
    assert data.class_names == ["cat", "dog"]
    by_label = {data[k]["label"]: data[k]["image"][:, 0, 0].tolist() for k in range(2)}
    assert by_label == {0: [1, -1, -1], 1: [-1, -1, 1]}

    write_image(tmp_path / "flat/a.png", (0, 255, 0))
    item = ImageData(DataConfig(source=str(tmp_path / "flat"), size=4))[0]
    assert set(item) == {"image"}


def test_parquet_files_give_labels_and_captions(tmp_path):
    features = datasets.Features(
        {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["x", "y"]), "words": datasets.Value("string")}
    )
    rows = {"img": [Image.new("RGB", (5, 5), "white")], "kind": [1], "words": ["a white square"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")
    config = {"image_column": "img", "label_column": "kind", "caption_column": "words", "size": 4}
    for source in (tmp_path / "data.parquet", tmp_path):
        data = ImageData(DataConfig(source=str(source), **config))
        assert data[0]["label"] == 1
        assert data[0]["caption"] == "a white square"
        assert torch.equal(data[0]["image"], torch.ones(3, 4, 4))
    with pytest.raises(InputError, match="img, kind, words"):
        ImageData(DataConfig(source=str(tmp_path), size=4))


def test_the_short_side_is_resized_and_the_centre_kept(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, :10], pixels[:, 10:20], pixels[:, 20:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    (tmp_path / "flat").mkdir()
    Image.fromarray(pixels).save(tmp_path / "flat/wide.png")
    image = ImageData(DataConfig(source=str(tmp_path / "flat"), size=10))[0]["image"]
    assert torch.equal(image[1], torch.ones(10, 10))
    assert torch.equal(image[0], -torch.ones(10, 10))


@pytest.mark.parametrize(
    ("mode", "colour", "channels", "wanted"),
    [
        ("RGB", (255, 255, 255), 1, [1.0]),
        ("L", 255, 3, [1.0, 1.0, 1.0]),
        ("RGBA", (0, 0, 0, 0), 3, [1.0, 1.0, 1.0]),
        ("P", 0, 3, [-1.0, -1.0, -1.0]),
        ("1", 1, 1, [1.0]),
    ],
)
def test_any_mode_becomes_grey_or_rgb_on_white(tmp_path, mode, colour, channels, wanted):
    write_image(tmp_path / "flat/a.png", colour, mode=mode)
    image = ImageData(DataConfig(source=str(tmp_path / "flat"), size=4, channels=channels))[0]["image"]
    assert image[:, 2, 2].tolist() == wanted


def test_an_unreadable_image_stops_with_its_name_or_is_left_out(tmp_path):
    for name in "abc":
        write_image(tmp_path / f"flat/{name}.png", (9, 9, 9))
    broken = tmp_path / "flat/b.png"
    broken.write_bytes(broken.read_bytes()[:40])
    data = ImageData(DataConfig(source=str(tmp_path / "flat"), size=4))
    with pytest.raises(InputError, match=r"b\.png.*--data.on-error skip"):
        [data[k] for k in range(3)]
    skipping = ImageData(DataConfig(source=str(tmp_path / "flat"), size=4, on_error="skip"))
    assert len([skipping[k] for k in range(len(skipping))]) == 2
    assert [Path(name).name for name in skipping.skipped] == ["b.png"]


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack requires\na buffer"),
        NotImplementedError("pixel format 7"),
        RuntimeError(),
        MemoryError(),
        KeyError("tile"),
        Image.DecompressionBombError("too large"),
    ],
)
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    for name in ("a.jpg", "b.png", "c.jpg"):
        write_image(tmp_path / name)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    data = ImageData(DataConfig(source=str(tmp_path), size=4))
    with pytest.raises(InputError, match=r"b\.png.*--data.on-error skip") as caught:
        data[1]
    assert "\n" not in str(caught.value)
    skipping = ImageData(DataConfig(source=str(tmp_path), size=4, on_error="skip"))
    assert skipping.describe()[-1] == f"left out 1 unreadable images: {tmp_path}/b.png"
    assert len([skipping[k] for k in range(len(skipping))]) == 2


@pytest.mark.parametrize(("orientation", "found"), [(1, False), (6, True)])
def test_a_broken_header_is_found_before_anything_is_decoded(tmp_path, monkeypatch, orientation, found):
    def fail(*args):
        raise struct.error("required argument is not an integer")

    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", (6, 6)).save(tmp_path / "a.jpg", exif=exif)
    monkeypatch.setattr(Image.Exif, "tobytes", fail)
    data = ImageData(DataConfig(source=str(tmp_path), size=4))
    if found:
        with pytest.raises(InputError, match=r"a\.jpg \(required argument is not an integer\)"):
            data.check()
    else:
        data.check()
        assert data[0]["image"].shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing", "neither digits, nor an existing folder"),
        ("./missing", "no file or folder"),
        ("missing.parquet", "there is no file"),
        ("empty", "empty"),
        ("words", "image"),
        ("broken.parquet", "cannot be loaded"),
    ],
)
def test_bad_sources_are_named(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words/notes.md").write_text("no image")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=message) as caught:
        ImageData(DataConfig(source=source))[0]
    assert "\n" not in str(caught.value)


def test_images_smaller_than_the_patch_are_named(tmp_path):
    write_image(tmp_path / "flat/tiny.png", (1, 1, 1), size=(3, 8))
    data = ImageData(DataConfig(source=str(tmp_path / "flat"), size=8), smallest_side=4)
    with pytest.raises(InputError, match=r"tiny\.png.*3x8.*patch of 4"):
        data[0]

"""`adadiff train`: folders of images, and what is printed of them."""

from __future__ import annotations

import json

from PIL import Image

from tests.cli.conftest import TINY, run


def test_train_and_sample_a_folder_of_images(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(4):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (12, 10), (60 * k, 90, 90)).save(tmp_path / f"photos/{k}.jpg")
    (tmp_path / "photos/4.jpg").write_bytes(b"not a picture")
    run("train images --data.source photos --data.size 8 --data.on-error skip --steps 3 --out run", TINY)
    printed = capsys.readouterr().out
    assert "left out 1 unreadable images: " in printed
    assert "4.jpg" in printed
    assert "adadiff sample run" in printed
    saved = json.loads((tmp_path / "run/train.json").read_text())
    assert (saved["steps"], saved["data"]["size"], saved["model"]["width"]) == (3, 8, 16)
    run("sample run -n 3 --steps 2 --tau 0.9 --out samples --scheduler dpm-solver++")
    assert "3 images in samples" in capsys.readouterr().out
    assert len(list((tmp_path / "samples").glob("0*.png"))) == 3


def test_what_is_trained_on_and_left_out_is_printed_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, shade in (("cat/1.png", 0), ("cat/2.png", 90), ("[red] dog/1.png", 200)):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / "photos" / name)
    (tmp_path / "photos/cat/3.heic").write_bytes(b"")
    described = [
        "3 images of photos",
        "classes (2): [red] dog 1, cat 2",
        "left out 1 files of other types: cat/3.heic",
    ]
    run("train images --data.source photos --data.size 8 --model.condition class --steps 1 --out run", TINY)
    assert capsys.readouterr().out.splitlines()[:3] == described
    run("train images --data.source . --data.size 8 --steps 1 --out again", TINY)
    assert "left out 1 folders made by adadiff: run" in capsys.readouterr().out

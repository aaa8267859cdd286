"""Small image files and tables of them."""

import io
from pathlib import Path

import datasets
import pytest
from PIL import Image

datasets.disable_progress_bars()


def write_image(path: Path, colour=(9, 9, 9), size=(6, 6), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def encoded(colour=(9, 9, 9)) -> dict:
    """A cell with a PNG file's bytes."""
    stream = io.BytesIO()
    Image.new("RGB", (6, 6), colour).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """An empty folder for images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder

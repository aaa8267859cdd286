"""Cells of tables: types, null and empty ones, found before anything is decoded."""

import datasets
import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pytest

from adadiff import InputError
from adadiff.data import DataConfig, ImageData
from adadiff.data.columns import encode_string_labels, rows_without_condition, rows_without_image
from tests.data.conftest import encoded
from tests.data.test_sources import write_parquet


def open_table(tmp_path, condition=None, on_error="stop", **columns):
    rows = len(next(iter(columns.values())))
    write_parquet(tmp_path / "table.parquet", **{"image": [encoded()] * rows, **columns})
    config = DataConfig(source=str(tmp_path / "table.parquet"), size=4, on_error=on_error)
    return ImageData(config, condition=condition)


def image(kind):
    """Cells of a type that datasets write images in."""
    content = encoded((255, 0, 0))["bytes"]
    return {
        "struct": pa.array([{"bytes": content, "path": "a.png"}]),
        "struct without path": pa.array([{"bytes": content, "path": None}]),
        "bytes alone": pa.array([{"bytes": content}]),
        "binary": pa.array([content]),
        "large binary": pa.array([content], pa.large_binary()),
    }[kind]


@pytest.mark.parametrize("kind", ["struct", "struct without path", "bytes alone", "binary", "large binary"])
def test_images_may_be_stored_in_any_of_these_types(tmp_path, kind):
    assert open_table(tmp_path, image=image(kind))[0]["image"][:, 0, 0].tolist() == [1, -1, -1]


def test_images_may_be_paths(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded((255, 0, 0))["bytes"])
    data = open_table(tmp_path, image=[str(tmp_path / "a.png")])
    assert data[0]["image"][:, 0, 0].tolist() == [1, -1, -1]


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([[encoded()]], "lists"),
        ([1], "int64"),
        ([0.5], "float"),
        ([{"bytes": b"", "other": 1}], "structs"),
        ([None], "null"),
    ],
)
def test_columns_that_hold_no_images_are_refused(tmp_path, cells, kind):
    with pytest.raises(InputError, match=f"'image' of .*table.parquet holds {kind}.*--data.image-column"):
        open_table(tmp_path, image=cells)


@pytest.mark.parametrize("cell", [None, {"bytes": b"", "path": "a.png"}, {"bytes": None, "path": None}])
def test_empty_image_cells_are_named_or_left_out(tmp_path, cell):
    cells = [encoded(), cell, encoded((255, 0, 0)), cell]
    with pytest.raises(InputError, match=r"2 of 4 rows have no image, the first is .*, row 1.*on-error skip"):
        open_table(tmp_path, image=cells)
    data = open_table(tmp_path, image=cells, on_error="skip", label=[0, 1, 2, 3], text=["a", "b", "c", "d"])
    assert [data[k]["image"][0, 0, 0].item() > 0 for k in range(2)] == [False, True]
    assert (data.labels(), data.captions()) == ([0, 2], ["a", "c"])
    assert [name.split("row ")[1][0] for name in data.left_out["rows without image"]] == ["1", "3"]


def test_rows_keep_their_numbers_when_others_are_left_out(tmp_path):
    cells = [None, encoded(), {"bytes": b"broken", "path": None}]
    data = open_table(tmp_path, image=cells, on_error="skip")
    assert data.skipped == [f"{tmp_path}/table.parquet, row 2"]
    with pytest.raises(InputError, match=r"every row of .* lacks its image"):
        open_table(tmp_path, image=[None, {"bytes": None, "path": None}], on_error="skip")


@pytest.mark.parametrize(
    ("condition", "column", "cells", "message"),
    [
        (
            "class",
            "label",
            [0.0, 1.0],
            "labels in the column 'label' of .* are float64: they must be class",
        ),
        ("class", "label", [True, False], "are bool: they must be class labels, integers or strings"),
        ("class", "label", [[1], [2]], "are lists"),
        ("class", "label", [0, None], "1 of 2 rows have no label, the first is .*, row 1"),
        ("class", "label", [-1, 2], "1 of 2 rows have no label, the first is .*, row 0"),
        ("class", "label", ["cat", " "], "1 of 2 rows have no label, the first is .*, row 1"),
        ("class", "other", [0, 1], "has no label column 'label': set --data.label-column to one of image, other"),
        ("text", "text", [1, 2], "captions in the column 'text' of .* are int64: they must be strings"),
        ("text", "text", [["a"], ["b"]], "are lists: they must be strings"),
        ("text", "text", ["a", None], "1 of 2 rows have no caption, the first is .*, row 1"),
        ("text", "text", ["", " \n\u3000"], "2 of 2 rows have no caption, the first is .*, row 0"),
        ("text", "other", ["a", "b"], "has no caption column 'text'"),
    ],
)
def test_labels_and_captions_are_checked_where_they_are_needed_alone(tmp_path, condition, column, cells, message):
    with pytest.raises(InputError, match=message) as caught:
        open_table(tmp_path, condition, **{column: cells})
    assert "\n" not in str(caught.value)
    data = open_table(tmp_path, **{column: cells})
    with pytest.raises(InputError, match=message):
        data.labels() if condition == "class" else data.captions()
    assert len(data) == 2


@pytest.mark.parametrize(
    ("condition", "column", "cells"), [("class", "label", [None, 4]), ("text", "text", [" ", "a"])]
)
def test_rows_without_what_is_needed_are_left_out_and_counted(tmp_path, condition, column, cells):
    data = open_table(tmp_path, condition, "skip", **{column: cells})
    assert len(data) == 1
    assert (data.labels() if condition == "class" else data.captions()) == cells[1:]
    kind = "label" if condition == "class" else "caption"
    assert data.describe()[-1] == f"left out 1 rows without {kind}: {tmp_path}/table.parquet, row 0"


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.uint64(), pa.int32()])
def test_labels_may_be_integers_of_any_width(tmp_path, kind):
    cells = pa.array([2, None, 0], kind)
    assert open_table(tmp_path, "class", "skip", label=cells).labels() == [2, 0]


def test_labels_that_are_strings_become_classes_sorted_by_name(tmp_path):
    data = open_table(tmp_path, "class", label=["dog", "cat", "dog", "10", "2"])
    assert data.class_names == ["10", "2", "cat", "dog"]
    assert data.labels() == [data[k]["label"] for k in range(5)] == [3, 2, 3, 0, 1]
    assert data.describe()[1] == "classes (4): 10 1, 2 1, cat 1, dog 2"


@hypothesis.given(st.lists(st.sampled_from(["b", "a", "é", "10", "9"]), min_size=1))
def test_encoded_as_datasets_encodes_them(labels):
    table = datasets.Dataset.from_dict({"label": labels, "other": list(range(len(labels)))})
    ours, theirs = encode_string_labels(table, "label"), table.class_encode_column("label")
    assert ours["label"][:] == theirs["label"][:]
    assert ours["other"][:] == table["other"][:]
    assert ours.features["label"] == theirs.features["label"]


captions = st.lists(st.one_of(st.none(), st.text(alphabet=" \n\tab", max_size=3)), min_size=1)
contents = st.one_of(st.none(), st.sampled_from([b"", b"x"]))
paths = st.one_of(st.none(), st.sampled_from(["", "x.png"]))


@hypothesis.given(captions, st.data())
def test_blank_captions_are_found_after_a_selection_too(cells, data):
    table = datasets.Dataset.from_dict({"text": cells}, features=datasets.Features({"text": datasets.Value("string")}))
    chosen = data.draw(st.lists(st.sampled_from(range(len(cells))), min_size=1))
    wanted = [k for k, row in enumerate(chosen) if not (cells[row] or "").strip()]
    assert rows_without_condition(table.select(chosen), "text").tolist() == wanted


@hypothesis.given(st.lists(st.one_of(st.none(), st.fixed_dictionaries({"bytes": contents, "path": paths})), min_size=1))
def test_image_cells_without_bytes_or_path_are_found(cells):
    def is_empty(cell):
        return cell is None or (not cell["path"] if cell["bytes"] is None else not cell["bytes"])

    storage = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = datasets.Dataset(pa.table({"image": storage}), info=datasets.DatasetInfo(features=features))
    assert rows_without_image(table, "image").tolist() == [k for k, cell in enumerate(cells) if is_empty(cell)]

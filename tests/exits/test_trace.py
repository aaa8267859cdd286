"""The trace."""

import json

import pytest
import torch
from PIL import Image

from adadiff import Trace


def make_trace(layers, unconditional=None, depth=4):
    layers = torch.tensor(layers)
    unconditional = torch.zeros_like(layers) if unconditional is None else torch.tensor(unconditional)
    unknown = torch.full((*layers.shape, depth), torch.nan)
    return Trace(
        exit_layers=layers,
        flops=(layers + unconditional) * 10,
        depth=depth,
        full_flops=40,
        timesteps=tuple(range(len(layers))),
        uncertainties=unknown,
        unconditional_exit_layers=unconditional,
        unconditional_uncertainties=unknown,
    )


def test_fractions():
    trace = make_trace([[1, 4], [2, 2]])
    assert trace.layer_fraction == pytest.approx((1 + 4 + 2 + 2) / 16)
    assert trace.compute_fraction == pytest.approx((10 + 40 + 20 + 20) / 160)


def test_fractions_count_both_of_a_guided_pair_and_one_of_an_unguided():
    trace = make_trace([[1, 4], [2, 2]], [[3, 4], [0, 0]])
    assert trace.layer_fraction == pytest.approx((1 + 4 + 2 + 2 + 3 + 4) / (4 * 6))
    assert trace.compute_fraction == pytest.approx((1 + 4 + 2 + 2 + 3 + 4) / (4 * 6))


def test_join_puts_batches_side_by_side():
    joined = Trace.join([make_trace([[1], [2]]), make_trace([[3, 4], [4, 4]])])
    assert joined.exit_layers.tolist() == [[1, 3, 4], [2, 4, 4]]
    assert joined.flops.shape == (2, 3)


def test_saved_as_json_and_drawn(tmp_path):
    trace = make_trace([[1, 4], [2, 2], [3, 3]])
    trace.save(tmp_path / "trace.json", note="beside")
    saved = json.loads((tmp_path / "trace.json").read_text())
    assert saved["exit_layers"] == [[1, 4], [2, 2], [3, 3]]
    assert saved["layer_fraction"] == trace.layer_fraction
    assert saved["note"] == "beside"
    trace.plot(tmp_path / "exits.png")
    with Image.open(tmp_path / "exits.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exits.png", "trace.json"]

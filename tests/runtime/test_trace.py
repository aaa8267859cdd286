"""The trace."""

import functools
import json
import operator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adadiff import InputError, Trace
from adadiff.runtime.trace import TraceTotals


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
        guided=unconditional > 0,
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


@given(
    batches=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    steps=st.integers(1, 4),
    guided=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_totals_of_parts_add_up_to_those_of_the_whole(batches, steps, guided, seed):
    torch.manual_seed(seed)
    traces = [
        make_trace(*(torch.randint(low, 5, (steps, batch)).tolist() for low in ((1, 0) if guided else (1,))))
        for batch in batches
    ]
    whole = Trace.join(traces)
    totals = functools.reduce(operator.add, map(TraceTotals.of, traces))
    assert totals.images == sum(batches)
    assert totals.depth == 4
    layers = torch.stack([whole.exit_layers, whole.unconditional_exit_layers])
    assert totals.predictions == whole.predictions == int((layers > 0).sum())
    assert totals.layer_fraction == whole.layer_fraction == int(layers.sum()) / (4 * whole.predictions)
    assert totals.compute_fraction == whole.compute_fraction == int(whole.flops.sum()) / (40 * whole.predictions)
    assert totals.mean_exit_layers.tolist() == pytest.approx(whole.exit_layers.double().mean(1).tolist())
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        wanted = np.quantile(whole.exit_layers.numpy(), share, axis=1, method="inverted_cdf")
        assert totals.exit_quantile(share).tolist() == wanted.tolist()
    back = TraceTotals.from_dict(json.loads(json.dumps(totals.to_dict())))
    assert back.to_dict() == totals.to_dict()


def test_other_values_are_no_totals():
    for values in ({}, {"exits": 3}, {**TraceTotals.of(make_trace([[1]])).to_dict(), "exits": [[1], [2, 3]]}):
        with pytest.raises(InputError, match="totals of the trace cannot be read"):
            TraceTotals.from_dict(values)


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

"""Rows of a transformer's arguments and outputs."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from adadiff import InputError
from adadiff.stock.adapting.rows import RowInputs, by_rows, paired, replaced, selected

KEPT = torch.tensor([0, 2])


def numbered(*shape: int) -> Tensor:
    """Values 0, 1, 2 and so on."""
    return torch.arange(torch.Size(shape).numel()).view(shape)


def test_arguments_with_a_row_each_are_known_after_two_sizes_of_a_batch():
    inputs = RowInputs()
    for rows in (3, 2):
        arguments = {
            "sample": numbered(rows, 4),
            "positions": numbered(3, 2),
            "residuals": [numbered(rows, 1) for _ in range(3)],
            "captions": [numbered(5) for _ in range(rows)],
            "more": {"size": numbered(rows, 2), "scale": 1.0},
            "time": torch.tensor(3.0),
        }
        inputs.observe(arguments, rows)
        if rows == 3:
            given = arguments
    some = inputs.select(given, 3, KEPT)
    assert torch.equal(some["sample"], given["sample"][KEPT])
    assert torch.equal(some["positions"], given["positions"])
    assert [len(each) for each in some["residuals"]] == [2, 2, 2]
    assert len(some["captions"]) == 2
    assert torch.equal(some["more"]["size"], given["more"]["size"][KEPT])
    assert some["more"]["scale"] == 1.0
    assert some["time"] == 3


def test_arguments_that_were_not_seen_are_judged_by_their_length():
    some = RowInputs().select({"sample": numbered(3, 4), "positions": numbered(5, 2)}, 3, KEPT)
    assert [len(each) for each in some.values()] == [2, 5]


def test_lists_of_numbers_and_of_whole_batches_are_no_rows():
    arguments = {
        "skip_layers": [2, 3, 4],
        "residuals": [numbered(3, 2) for _ in range(3)],
        "captions": [numbered(5, 2) for _ in range(3)],
    }
    some = RowInputs().select(arguments, 3, KEPT)
    assert some["skip_layers"] == [2, 3, 4]
    assert [part.shape for part in some["residuals"]] == [(2, 2)] * 3
    assert [part.shape for part in some["captions"]] == [(5, 2)] * 2


def test_pairs_are_no_batch_of_two_rows():
    positions = (numbered(5, 4), numbered(5, 4))
    inputs = RowInputs()
    inputs.observe({"positions": positions}, 2)
    some = inputs.select({"positions": positions}, 2, torch.tensor([1]))
    assert [part.shape for part in some["positions"]] == [(5, 4), (5, 4)]


def test_rows_of_a_block_may_be_several_each():
    tokens, frames = selected((numbered(3, 2), numbered(6, 2)), 3, KEPT)
    assert torch.equal(tokens, numbered(3, 2)[KEPT])
    assert torch.equal(frames, numbered(6, 2)[[0, 1, 4, 5]])


def test_rows_are_replaced_in_every_kind_of_output():
    whole, part = torch.zeros(3, 2), torch.ones(2, 2)
    wanted = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    assert torch.equal(replaced((whole,), (part,), KEPT)[0], wanted)
    output = replaced(Transformer2DModelOutput(sample=whole), Transformer2DModelOutput(sample=part), KEPT)
    assert isinstance(output, Transformer2DModelOutput)
    assert torch.equal(output.sample, wanted)
    assert torch.equal(torch.stack(replaced(list(whole), list(part), KEPT)), wanted)
    assert not whole.any()


def test_pairs_are_recognised_by_equal_halves():
    noise = torch.randn(2, 3)
    assert paired(torch.cat([noise, noise]), 4)
    assert paired([*noise, *noise], 4)
    assert not paired(torch.cat([noise, noise + 1]), 4)
    assert not paired(noise[:1], 1)


def test_each_row_has_as_many_tokens():
    assert by_rows(numbered(4, 3, 2), 2).shape == (2, 6, 2)
    with pytest.raises(InputError, match="reads 5 sequences for 2 rows"):
        by_rows(numbered(5, 3), 2)

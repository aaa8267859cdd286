"""FLOPs of rows against a sum over what was run of each."""

import torch

from tests.conftest import make_model


def test_until_exit_adds_up_what_was_run_of_each_row():
    flops = make_model().part_flops
    exits = torch.tensor([1, 3, 5, 2])
    estimated = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 1]]).bool()
    measured = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    got = flops.until_exit(exits, estimated, measured)
    for row, exit_layer in enumerate(exits.tolist()):
        wanted = flops.embed + flops.heads[exit_layer - 1]
        for layer in range(1, exit_layer + 1):
            wanted += flops.layers[layer - 1] + flops.estimators[layer - 1] * estimated[row, layer - 1]
            wanted += flops.heads[layer - 1] * (measured[row, layer - 1] and layer < exit_layer)
        assert got[row] == wanted
    for row in range(4):  # the same masks for all rows
        assert flops.until_exit(exits, estimated[row], measured[row])[row] == got[row]
    assert flops.until_exit(torch.tensor([5]), torch.zeros(5, dtype=torch.bool)).item() == flops.full

"""Networks cut out of a trained one."""

import pytest
import torch
from torch import nn

from adadiff import InputError
from adadiff.baselines import drop_layers, prune
from tests.conftest import make_model

SAMPLE, TIME = torch.randn(2, 1, 8, 8), torch.tensor([100.0, 800.0])


@pytest.mark.parametrize("head_type", ["shared", "per_layer"])
@torch.no_grad()
def test_dropping_layers_is_taking_the_middle_ones_for_the_identity(head_type):
    """In a twin with layers 2 and 6 of 7 made identities, and the skip of the one nothing, 5 layers give the same."""
    model = make_model(depth=7, head_type=head_type)
    for place in (2, 4):
        layer = model.backbone.layers[place]
        for part in (layer.attn.proj, layer.mlp.fc2):
            nn.init.zeros_(part.weight), nn.init.zeros_(part.bias)
        if layer.skip_linear is not None:
            nn.init.eye_(layer.skip_linear.weight), nn.init.zeros_(layer.skip_linear.bias)
    smaller = drop_layers(model, 5)
    assert smaller.depth == 5
    torch.testing.assert_close(smaller(SAMPLE, TIME).sample, model(SAMPLE, TIME).sample, rtol=1e-4, atol=1e-4)
    assert torch.equal(drop_layers(model, 7)(SAMPLE, TIME).sample, model(SAMPLE, TIME).sample)
    assert drop_layers(model, 1).depth == 1


@torch.no_grad()
def test_pruning_cuts_out_what_is_zero_first():
    """Units that do nothing are the least important: without them the network is the same."""
    model = make_model(depth=3, width=16, num_heads=4)
    generator = torch.Generator().manual_seed(0)
    for layer in model.backbone.layers:
        for head in torch.randperm(4, generator=generator)[:2].tolist():
            rows = torch.arange(3)[:, None] * 16 + head * 4 + torch.arange(4)
            layer.attn.qkv.weight[rows.flatten()] = 0
            layer.attn.proj.weight[:, head * 4 : head * 4 + 4] = 0
        units = torch.randperm(64, generator=generator)[:40]
        layer.mlp.fc1.weight[units], layer.mlp.fc1.bias[units], layer.mlp.fc2.weight[:, units] = 0, 0, 0
    smaller = prune(model, 0.6)
    assert smaller.backbone.layers[0].attn.num_heads == 2
    assert 24 <= smaller.backbone.layers[0].mlp.fc1.out_features < 64
    torch.testing.assert_close(smaller(SAMPLE, TIME).sample, model(SAMPLE, TIME).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compute", [1.0, 0.8, 0.6, 0.5])
def test_pruning_meets_the_asked_compute(compute, tmp_path):
    model = make_model(depth=5, width=32, num_heads=4)
    smaller = prune(model, compute)
    assert smaller.part_flops.full / model.part_flops.full == pytest.approx(compute, abs=0.01)
    smaller.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again(SAMPLE, TIME).sample, smaller(SAMPLE, TIME).sample)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: drop_layers(m, 2), "must be an odd number, at most 5"),
        (lambda m: drop_layers(m, 7), "must be an odd number, at most 5"),
        (lambda m: prune(m, 0.0), "above 0 and at most 1"),
        (lambda m: prune(m, 0.01), "at the least"),
    ],
)
def test_what_cannot_be_cut_is_told(make, message):
    with pytest.raises(InputError, match=message):
        make(make_model())

"""Output heads."""

import torch

from tests.conftest import make_model


def test_the_shared_head_adds_no_weights_and_per_layer_heads_add_all_but_the_last():
    count = {kind: sum(p.numel() for p in make_model(head_type=kind).parameters()) for kind in ("shared", "per_layer")}
    head = sum(p.numel() for p in make_model().backbone.head.parameters())
    assert count["per_layer"] - count["shared"] == 4 * head


def test_starting_from_a_backbone_copies_it_and_its_head_into_every_exit():
    source, model = make_model(seed=1), make_model(head_type="per_layer", seed=2)
    model.start_from(source.backbone)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(images, 5).sample, source(images, 5).sample)
        predictions, _ = model.all_exits(images, torch.tensor([5, 5]))
        shared_predictions, _ = source.all_exits(images, torch.tensor([5, 5]))
    torch.testing.assert_close(predictions, shared_predictions)

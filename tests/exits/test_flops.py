"""FLOPs against the closed form."""

import torch

from adadiff.exits.flops import flop_counter
from tests.conftest import make_model


def test_every_part_is_the_closed_form():
    model = make_model(sample_size=(8, 12), in_channels=3, depth=5, width=16, patch_size=2)
    patches, width, values = 4 * 6, 16, 2 * 2 * 3
    tokens = patches + 1
    plain = 2 * tokens * width**2 * (3 + 1 + 4 + 4) + 4 * tokens**2 * width
    with_skip = plain + 2 * tokens * 2 * width * width
    flops = model.part_flops
    assert flops.embed == 2 * patches * values * width
    assert flops.layers.tolist() == [plain] * 3 + [with_skip] * 2
    assert flops.heads.tolist() == [2 * patches * width * values + 2 * 9 * 3 * 3 * 8 * 12] * 5
    assert flops.estimators.tolist() == [2 * patches * width * values + 2 * width * values] * 5
    assert flops.full == flops.embed + 3 * plain + 2 * with_skip + flops.heads[0]


def test_the_counter_knows_the_cpus_fused_attention():
    q = torch.randn(2, 3, 7, 8)
    with flop_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 2 * 3 * (2 * 7 * 7 * 8) * 2

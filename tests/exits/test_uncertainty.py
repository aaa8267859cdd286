"""Uncertainty estimators against their formulas."""

import torch

from tests.conftest import make_model


def test_concat_is_a_linear_map_of_the_concatenation():
    estimator = make_model().estimators[0]
    tokens, time = torch.randn(3, 16, 16), torch.randn(3, 16)
    weight = torch.cat([estimator.tokens.weight, estimator.time.weight], dim=1)
    both = torch.cat([tokens, time[:, None].expand(-1, 16, -1)], dim=2)
    wanted = torch.sigmoid(both @ weight.T + estimator.time.bias)
    torch.testing.assert_close(estimator(tokens, time), wanted)
    assert wanted.shape == (3, 16, 4)


def test_token_does_not_see_the_time():
    estimator = make_model(estimator_type="token").estimators[0]
    tokens = torch.randn(3, 16, 16)
    wanted = torch.sigmoid(tokens @ estimator.tokens.weight.T + estimator.tokens.bias)
    torch.testing.assert_close(estimator(tokens, torch.randn(3, 16)), wanted)


def test_attention_is_a_learned_query_over_keys_and_values():
    """With explicit key and value projections, which the estimator takes into its query and its MLP."""
    torch.manual_seed(0)
    estimator = make_model(estimator_type="attention").estimators[0]
    key, value, query = torch.randn(16, 16), torch.linalg.qr(torch.randn(16, 16)).Q, torch.randn(16)
    tokens = torch.randn(3, 5, 16)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query.expand(3, 1, 16), tokens @ key.T, tokens @ value.T
    )
    first, last = estimator.mlp[0], estimator.mlp[2]
    hidden = torch.nn.functional.silu(attended @ (first.weight @ value.T).T + first.bias)
    wanted = torch.sigmoid(hidden @ last.weight.T + last.bias)
    with torch.no_grad():
        estimator.query.weight.copy_((query @ key)[None])
    torch.testing.assert_close(estimator(tokens, torch.randn(3, 16)), wanted.expand(3, 5, 4), rtol=1e-4, atol=1e-5)

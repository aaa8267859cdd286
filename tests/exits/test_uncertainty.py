"""Uncertainty estimators against their formulas."""

import torch

from adadiff import ThresholdExit
from tests.conftest import make_model, predict


def test_concat_is_a_linear_map_of_the_concatenation():
    estimator = make_model().estimators[0]
    tokens, time = torch.randn(3, 16, 16), torch.randn(3, 16)
    weight = torch.cat([estimator.tokens.weight, estimator.time.weight], dim=1)
    both = torch.cat([tokens, time[:, None].expand(-1, 16, -1)], dim=2)
    wanted = torch.sigmoid(both @ weight.T + estimator.time.bias)
    torch.testing.assert_close(estimator(tokens, time, tokens), wanted)
    assert wanted.shape == (3, 16, 4)


def test_token_does_not_see_the_time():
    estimator = make_model(estimator_type="token").estimators[0]
    tokens = torch.randn(3, 16, 16)
    wanted = torch.sigmoid(tokens @ estimator.tokens.weight.T + estimator.tokens.bias)
    torch.testing.assert_close(estimator(tokens, torch.randn(3, 16), tokens), wanted)


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
    torch.testing.assert_close(
        estimator(tokens, torch.randn(3, 16), tokens), wanted.expand(3, 5, 4), rtol=1e-4, atol=1e-5
    )


def test_shared_token_is_one_map_for_all_layers():
    model = make_model(estimator_type="shared_token")
    state = model.backbone.embed(torch.randn(2, 1, 8, 8), torch.tensor([3.0, 900.0]))
    for i in (1, 2, 3):
        before, state = state, model.backbone.layer(i, state)
        (estimator,) = model.estimators
        wanted = torch.sigmoid(estimator.tokens(model.backbone.patch_tokens(state)))
        torch.testing.assert_close(model.uncertainty(i, state, before), wanted)


def test_saturation_is_one_minus_the_cosine_of_successive_layers():
    model = make_model(estimator_type="saturation")
    assert not list(model.estimators.parameters())
    before = model.backbone.embed(torch.randn(3, 1, 8, 8), torch.tensor([3.0, 500.0, 900.0]))
    state = model.backbone.layer(1, before)
    tokens, previous = (model.backbone.patch_tokens(each) for each in (state, before))
    lengths = tokens.norm(dim=2) * previous.norm(dim=2)
    wanted = 1 - ((tokens * previous).sum(2) / lengths).mean(1)
    found = model.uncertainty(1, state, before)
    assert found.shape == (3, 16, 4)
    torch.testing.assert_close(found, wanted.clamp(0, 1)[:, None, None].expand_as(found))
    assert not model.uncertainty(1, state, state).any()


def test_saturation_decides_for_each_sample_what_it_would_alone():
    model = make_model(estimator_type="saturation")
    sample, timestep = torch.randn(6, 1, 8, 8), torch.linspace(1, 900, 6)
    estimated = predict(model, sample, timestep, return_uncertainties=True).uncertainties
    policy = ThresholdExit(estimated[:, 1].median().item() + 1e-4)
    together = predict(model, sample, timestep, policy=policy)
    assert len(set(together.exit_layers.tolist())) > 1
    for k in range(6):
        alone = predict(model, sample[k : k + 1], timestep[k : k + 1], policy=policy)
        assert alone.exit_layers.tolist() == together.exit_layers[k : k + 1].tolist()

"""The losses against a double loop over samples and layers, and where their gradients go."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adadiff.exits.losses import joint_loss, layerwise_loss, simple_loss, uncertainty_loss
from tests.conftest import make_model

shapes = st.tuples(st.integers(2, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


def draw(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.randn(shape, generator=generator, dtype=torch.float64)
    uncertainties = torch.rand(shape, generator=generator, dtype=torch.float64)
    target = torch.randn(shape[1:], generator=generator, dtype=torch.float64)
    return predictions, uncertainties, target


def mean(values):
    values = list(values)
    return sum(values) / len(values)


@given(shapes)
def test_simple_loss(shape):
    predictions, _, target = draw(shape)
    pairs = zip(predictions[-1].flatten().tolist(), target.flatten().tolist(), strict=True)
    assert simple_loss(predictions[-1], target).item() == pytest.approx(mean((p - t) ** 2 for p, t in pairs))


@given(shapes)
def test_uncertainty_loss(shape):
    predictions, uncertainties, target = draw(shape)
    terms = []
    for i in range(shape[0]):
        for k in range(shape[1]):
            flat = (predictions[i, k].flatten(), uncertainties[i, k].flatten(), target[k].flatten())
            triples = zip(*(values.tolist() for values in flat), strict=True)
            terms.append(mean((u - math.tanh(abs(p - t))) ** 2 for p, u, t in triples))
    assert uncertainty_loss(uncertainties, predictions, target).item() == pytest.approx(mean(terms))


@given(shapes)
def test_layerwise_loss(shape):
    predictions, uncertainties, target = draw(shape)
    terms = []
    for i in range(shape[0] - 1):
        for k in range(shape[1]):
            weight = 1 - mean(uncertainties[i, k].flatten().tolist())
            pairs = zip(predictions[i, k].flatten().tolist(), target[k].flatten().tolist(), strict=True)
            terms.append(weight * mean((p - t) ** 2 for p, t in pairs))
    assert layerwise_loss(predictions, uncertainties, target).item() == pytest.approx(mean(terms))


@given(shapes)
def test_layerwise_loss_normalized_over_layers(shape):
    predictions, uncertainties, target = draw(shape)
    certainties, errors = [], []
    for i in range(shape[0] - 1):
        certainties.append(mean(1 - u for u in uncertainties[i].flatten().tolist()))
        errors.append(mean((p - target).square().mean().item() for p in [predictions[i]]))
    wanted = sum(c / sum(certainties) * e for c, e in zip(certainties, errors, strict=True))
    assert layerwise_loss(predictions, uncertainties, target, "normalized").item() == pytest.approx(wanted)


@given(shapes)
def test_layerwise_loss_of_the_rivals(shape):
    """BERxiT sums all layers up; CALM weights layer i by i, the last one included."""
    predictions, uncertainties, target = draw(shape)
    errors = [(p - target).square().mean().item() for p in predictions]
    uniform = layerwise_loss(predictions, uncertainties, target, "uniform").item()
    assert uniform + errors[-1] == pytest.approx(sum(errors))
    index = layerwise_loss(predictions, uncertainties, target, "index").item()
    weighted = sum(i * error for i, error in enumerate(errors, start=1))
    assert (index + errors[-1]) * shape[0] == pytest.approx(weighted)


def test_joint_loss_adds_the_terms_up():
    predictions, uncertainties, target = draw((3, 2, 1, 4, 4))
    loss = joint_loss(predictions, uncertainties, target, uncertainty_weight=0.5, layerwise_weight=0.25)
    wanted = (
        simple_loss(predictions[-1], target)
        + 0.5 * uncertainty_loss(uncertainties, predictions, target)
        + 0.25 * layerwise_loss(predictions, uncertainties, target)
    )
    torch.testing.assert_close(loss.total, wanted)


@pytest.mark.parametrize("estimator", ["concat", "token", "attention"])
@pytest.mark.parametrize("head", ["shared", "per_layer"])
def test_the_estimators_loss_sends_no_gradient_into_backbone_or_heads(estimator, head):
    model = make_model(estimator_type=estimator, head_type=head, time_mlp=True)
    predictions, uncertainties = model.all_exits(torch.randn(2, 1, 8, 8), torch.tensor([1.0, 900.0]))
    uncertainty_loss(uncertainties, predictions, torch.randn(2, 1, 8, 8)).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.backbone.parameters())
    assert all(p.grad is None or not p.grad.any() for p in model.heads.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.estimators.parameters())


def test_the_layerwise_weight_carries_no_gradient_unless_normalized():
    predictions, uncertainties, target = draw((3, 2, 1, 4, 4))
    uncertainties.requires_grad_()
    predictions.requires_grad_()
    layerwise_loss(predictions, uncertainties, target).backward()
    assert uncertainties.grad is None
    assert predictions.grad[:-1].any()
    assert not predictions.grad[-1].any()
    layerwise_loss(predictions, uncertainties, target, "normalized").backward()
    assert uncertainties.grad[:-1].any()
